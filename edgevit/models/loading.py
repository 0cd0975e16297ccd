"""What is to be exported: a registered model, the user's own factory, or a module at hand, made alike."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevit.errors import EdgevitError, ExportError, UsageError
from edgevit.files import class_and_first_line
from edgevit.images import Preprocessing
from edgevit.models import checkpoints, registry
from edgevit.models.downloads import OFFICIAL, OnDownload
from edgevit.models.initialization import randomise
from edgevit.models.spec import ModelCard

SEED = 0  # of random weights and of noise


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module with all that an export needs to know of it. `example` holds one tensor an input, batch first."""

    name: str
    module: nn.Module
    example: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None  # None where the input is no image
    classes: tuple[str, ...] | None
    origin: Mapping[str, Any]  # for the manifest: family, options, weights and their hash

    @property
    def batch(self) -> int:
        """The rows of the example, which a static export is made for."""
        return len(self.example[0])


def from_name(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    on_download: OnDownload | None = None,
) -> LoadedModel:
    """The subject for what stands on the command line: a registered name, or `module:factory`, `file.py:factory`.

    A registered model without weights is given random ones that keep its activations alive; for "official" ones see
    `registry.create_model`.
    """
    registry.require_positive("img_size", img_size)
    registry.require_positive("batch", batch)
    if ":" in name:
        return _from_factory(name, weights=weights, num_classes=num_classes, img_size=img_size, batch=batch)
    module = registry.create_model(name, weights, num_classes, img_size=img_size, on_download=on_download)
    if _card(module).weights == "random":
        randomise(module, seed=SEED)
    return from_module(module, batch=batch)


def from_module(
    module: nn.Module,
    *,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch: int = 1,
    name: str | None = None,
) -> LoadedModel:
    """The subject for a module at hand. Raises UsageError where it is none, or nothing says what its input is."""
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"a model is a registered name, a module:factory or a torch.nn.Module, not a {type(module).__name__}"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("the model is TorchScript, which PyTorch's exporter does not take; give the module it is of")
    registry.require_positive("batch", batch)
    if hasattr(module, "card") and isinstance(module.card, ModelCard):
        return _from_card(module, module.card, example_input, batch)
    if example_input is None:
        raise UsageError(
            f"nothing says what {type(module).__name__} takes: give example_input=torch.rand(1, 3, 224, 224)"
        )
    example = _examples(example_input, batch)
    return LoadedModel(
        name=name or _slug(type(module).__name__),
        module=in_eval_mode(module),
        example=example,
        input_names=tuple(forward_names(module, len(example))),
        output_names=None,
        preprocessing=_image_like(example),
        classes=None,
        origin={"family": None, "source": None, "options": {}, "weights": "as given", "weights_sha256": None},
    )


def forward_names(module: nn.Module, count: int) -> list[str]:
    """The names of the first `count` parameters of `forward`. Raises UsageError where it takes fewer."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += [f"input_{index}" for index in range(len(names), count)]
    if len(names) < count:
        raise UsageError(f"{type(module).__name__}.forward takes {len(names)} tensors, and {count} were given")
    return names[:count]


def in_eval_mode(module: nn.Module) -> nn.Module:
    """Switch a module to evaluation mode; programs of torch.export, which cannot switch, stay as they are."""
    try:
        return module.eval()
    except NotImplementedError:
        return module


@contextmanager
def flags_restored(model: object) -> Iterator[None]:
    """Gives a module and all its parts back as they were, training or not; leaves anything else alone."""
    parts = tuple(model.modules()) if isinstance(model, nn.Module) else ()
    flags = [part.training for part in parts]
    try:
        yield
    finally:
        for part, flag in zip(parts, flags, strict=True):
            part.training = flag


def class_names(dataset: str) -> tuple[str, ...]:
    """The names of a dataset's classes in the order of the logits."""
    path = resources.files("edgevit") / "data" / f"{dataset}_classes.tsv"
    return tuple(line.split("\t")[-1] for line in path.read_text("utf-8").splitlines())


def _from_card(
    module: nn.Module, card: ModelCard, example_input: torch.Tensor | Sequence[torch.Tensor] | None, batch: int
) -> LoadedModel:
    preprocessing: Preprocessing | None = card.preprocessing
    if example_input is None:
        example: tuple[torch.Tensor, ...] = (torch.zeros(batch, *card.preprocessing.input_size),)
    else:
        example = _examples(example_input, batch)
        if tuple(example[0].shape[1:]) != card.preprocessing.input_size:
            preprocessing = _image_like(example)
    return LoadedModel(
        name=card.name,
        module=in_eval_mode(module),
        example=example,
        input_names=("images",),
        output_names=("logits",),
        preprocessing=preprocessing,
        classes=class_names(card.classes) if card.classes else None,
        origin={
            "family": card.family,
            "source": card.name,
            "options": dict(card.options),
            "num_classes": card.num_classes,
            "weights": f"random (seed {SEED})" if card.weights == "random" else card.weights,
            "weights_sha256": card.weights_sha256,
        },
    )


def _from_factory(
    name: str,
    *,
    weights: str | os.PathLike[str] | None,
    num_classes: int | None,
    img_size: int | tuple[int, int] | None,
    batch: int,
) -> LoadedModel:
    if num_classes is not None:
        raise UsageError("--num-classes is for registered models; your factory decides on its own classes")
    if weights == OFFICIAL:
        raise UsageError(f"official weights are for registered models; pass those of {name} with --weights FILE")
    with _same_folder():
        module, loaded = _call(_find_factory(name), name), {}
    if weights is not None:
        read = checkpoints.read(weights)
        checkpoints.load_into(module, read.tensors, source=str(weights))
        loaded = {"weights": str(weights), "weights_sha256": read.sha256}
    place, _, attribute = name.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    size = _height_and_width(224 if img_size is None else img_size)
    if isinstance(getattr(module, "card", None), ModelCard):
        registered = from_module(module, batch=batch)
        _require_size(registered, img_size)
        return replace(registered, origin={**registered.origin, **loaded})
    subject = from_module(
        module, example_input=torch.zeros(batch, 3, *size, device="cpu"), name=_slug(f"{stem}_{attribute}")
    )
    return replace(subject, origin={**subject.origin, "source": name, **loaded})


@contextmanager
def _same_folder() -> Iterator[None]:
    """Comes back to the current folder, which other paths of the user's are told from: a script may go to its own."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)


def _height_and_width(img_size: int | tuple[int, int]) -> tuple[int, int]:
    return (img_size, img_size) if isinstance(img_size, int) else img_size


def _require_size(registered: LoadedModel, img_size: int | tuple[int, int] | None) -> None:
    own = tuple(registered.example[0].shape[2:])
    if img_size is not None and own != _height_and_width(img_size):
        raise UsageError(
            f"your factory made {registered.name} for images of {own[0]} x {own[1]}; give create_model img_size"
        )


def _find_factory(name: str) -> Callable[[], Any]:
    place, _, attribute = name.rpartition(":")
    if not place.strip(". ") or not attribute:
        raise UsageError(f"MODEL is a registered name, package.module:factory or file.py:factory, not {name!r}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{place} has no function {attribute!r}; it has {', '.join(public) or 'none'}")
    return factory


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no file {path}; MODEL is a registered name, package.module:factory or file.py:factory")
    name = path.stem if path.stem not in sys.modules else f"_users_{path.stem}"  # a file may be called torch.py
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a module up by its name
    sys.path.insert(0, str(path.parent.resolve()))  # so that it can import its neighbours, as when run as a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user code, which may also leave the program
        raise ExportError(f"{path} failed as it was imported: {class_and_first_line(error)}") from error
    return module


def _import_module(place: str) -> Any:
    sys.path.insert(0, "")  # the current folder, as with `python -m`
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UsageError(f"no Python module {place!r} ({error}); for a file write file.py:factory") from error
    except (Exception, SystemExit) as error:  # user code, which may also leave the program
        raise ExportError(f"{place} failed as it was imported: {class_and_first_line(error)}") from error


def _call(factory: Callable[[], Any], name: str) -> nn.Module:
    try:
        module = factory()
    except EdgevitError:
        raise
    except (Exception, SystemExit) as error:  # user code, which may also leave the program
        raise ExportError(f"{name}() failed: {class_and_first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name}() gave a {type(module).__name__}, not a torch.nn.Module")
    return in_eval_mode(module)


def _examples(example_input: torch.Tensor | Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """The example as a tuple of tensors with `batch` rows; an example with several rows keeps its own number."""
    example = (example_input,) if isinstance(example_input, torch.Tensor) else tuple(example_input)
    if not example or not all(isinstance(tensor, torch.Tensor) and tensor.ndim > 0 for tensor in example):
        raise UsageError("example_input is a tensor, or a sequence of tensors, with the batch as the first axis")
    for tensor in example:
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise UsageError(
                f"example_input is {str(tensor.dtype).removeprefix('torch.')}; export in float32, module and input "
                "(module.float()), and ask for a lower precision with precision="
            )
    if len({len(tensor) for tensor in example}) != 1:
        raise UsageError("all inputs have the batch as their first axis, and the examples disagree about it")
    if batch > 1 and len(example[0]) == 1:
        example = tuple(tensor.repeat(batch, *([1] * (tensor.ndim - 1))) for tensor in example)
    return tuple(tensor.detach().cpu().contiguous() for tensor in example)


def _image_like(example: tuple[torch.Tensor, ...]) -> Preprocessing | None:
    """ImageNet's preprocessing where the only input looks like a batch of photos."""
    first = example[0]
    if len(example) == 1 and first.ndim == 4 and first.shape[1] == 3 and first.dtype == torch.float32:
        return Preprocessing(input_size=(3, first.shape[2], first.shape[3]))
    return None


def _card(module: nn.Module) -> ModelCard:
    assert isinstance(module.card, ModelCard)
    return module.card


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "model"
