"""Create models of timm (`timm:NAME`) and Hugging Face transformers (`hf:FOLDER` or `hf:ORG/NAME`).

Neither package is a dependency, and nothing is downloaded unless the user asks for it.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.errors import ExportError, MissingError, UsageError, did_you_mean
from edgevit.files import class_and_first_line, first_line
from edgevit.models.description import HUGGING_FACE, TIMM
from edgevit.models.hf_processor import PROCESSORS

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEED = 0  # of the random weights


@dataclass(frozen=True, slots=True)
class HubModel:
    """A module, its name without a folder, and the origin of its weights, as a manifest records them."""

    module: nn.Module
    name: str
    weights: str


def create_hub_model(
    name: str, *, num_classes: int | None, img_size: int | tuple[int, int] | None, download: bool
) -> HubModel:
    """Return the model that `name` names, with random weights (timm) or the ones in the local folder or cache (hf).

    `img_size` is for models of timm that are built for one size. With `download` the published weights are fetched.
    Raises MissingError if the package is not installed or the weights are not on this machine, UsageError if there is
    no such model.
    """
    if name.startswith(TIMM):
        return _create_timm(name.removeprefix(TIMM), num_classes=num_classes, img_size=img_size, download=download)
    if num_classes is not None:
        raise UsageError("--num-classes requires a registered model or timm:NAME; a Hugging Face model has its own")
    return _load_hugging_face(name.removeprefix(HUGGING_FACE), download=download)


def _create_timm(
    name: str, *, num_classes: int | None, img_size: int | tuple[int, int] | None, download: bool
) -> HubModel:
    timm = _import("timm")
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}.{did_you_mean(name.partition('.')[0], timm.list_models())}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if img_size is not None and _is_built_for_one_size(timm, name):
        options["img_size"] = img_size
    failed = f"the weights of {name} could not be downloaded" if download else f"timm could not create {name}"
    with _failures_as_errors(missing=failed, failed=failed), torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        module = timm.create_model(name, pretrained=download, **options)
    weights = f"official ({module.pretrained_cfg.get('tag') or name})" if download else "random (timm)"
    return HubModel(module, f"{TIMM}{name}", weights)


def _is_built_for_one_size(timm: Any, name: str) -> bool:
    """Return whether a model takes the size of its input as an argument: ViTs do, convolutional networks do not."""
    return bool(timm.get_pretrained_cfg(name).fixed_input_size)


def _load_hugging_face(name: str, *, download: bool) -> HubModel:
    transformers = _import("transformers")
    folder = Path(name).expanduser()
    reference = str(folder) if folder.is_dir() else name
    advice = "" if folder.is_dir() else "; --weights official downloads it, hf:FOLDER loads a local one"
    missing, failed = f"no Hugging Face model {name} on this machine{advice}", f"transformers could not open {name}"
    with _failures_as_errors(missing=missing, failed=failed):
        config = transformers.AutoConfig.from_pretrained(reference, local_files_only=not download)
        module = _model_class(transformers, config).from_pretrained(
            reference, config=config, local_files_only=not download
        )
        if download:
            _fetch_preprocessing(transformers, reference)
    known_as = f"{HUGGING_FACE}{folder.resolve().name if folder.is_dir() else name}"
    return HubModel(module, known_as, weights=known_as)


def _model_class(transformers: Any, config: Any) -> Any:
    """Return the class that the model was saved with, which has its head; AutoModel if transformers has no such class.

    The Auto classes of tasks do not do: some of a model's heads are in none of them, such as those of distilled
    models (`DeiTForImageClassificationWithTeacher`), or in one whose name does not tell.
    """
    architecture = (config.architectures or [""])[0]
    return getattr(transformers, architecture, transformers.AutoModel)


def _fetch_preprocessing(transformers: Any, name: str) -> None:
    """Download the files with the preprocessing of a model, if it has any; `declared_preprocessing` finds them."""
    for file in PROCESSORS:
        transformers.utils.cached_file(name, file, _raise_exceptions_for_missing_entries=False)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed, which the model needs: pip install {package}") from error
    except Exception as error:
        raise MissingError(f"importing {package} failed: {class_and_first_line(error)}") from error


@contextmanager
def _failures_as_errors(*, missing: str, failed: str) -> Iterator[None]:
    """Turn what these packages raise into errors of edgevit: an unreachable hub is missing, the rest has failed."""
    offline = os.environ.get("HF_HUB_OFFLINE")
    try:
        yield
    except (OSError, ConnectionError) as error:
        detail = "HF_HUB_OFFLINE is set" if offline else first_line(error)
        raise MissingError(f"{missing} ({detail})") from error
    except Exception as error:
        raise ExportError(f"{failed}: {class_and_first_line(error)}") from error
