"""The models by name. A new architecture is one file beside this one and one line in `ARCHITECTURES`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import numbers
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from edgevit.errors import UsageError, unknown_name
from edgevit.images import Preprocessing
from edgevit.models import checkpoints
from edgevit.models import downloads as published
from edgevit.models.downloads import OnDownload
from edgevit.models.spec import ModelCard, ModelSpec, StateDict

ARCHITECTURES = (
    "shiftvit",
    "deit",
    "t2t_vit",
    "swin",
    "vitae",
    "vitaev2",
    "visual_transformers",
    "mobileformer",
)


@cache
def specs() -> dict[str, ModelSpec]:
    """Every registered model by name, in the order of the architectures and of their tables."""
    found: dict[str, ModelSpec] = {}
    for architecture in ARCHITECTURES:
        for spec in importlib.import_module(f"edgevit.models.{architecture}").SPECS:
            if spec.name in found:
                raise AssertionError(f"two models are named {spec.name!r}")
            found[spec.name] = spec
    return found


def list_models(family: str | None = None) -> list[str]:
    """The names of the registered models, of one family or of all. Raises UsageError for an unknown family."""
    families = {spec.family for spec in specs().values()}
    if family is not None and family not in families:
        raise unknown_name("family", family, families)
    return [name for name, spec in specs().items() if family in (None, spec.family)]


def get_spec(name: str) -> ModelSpec:
    """The registered model of that name. Raises UsageError with near misses."""
    if name not in specs():
        raise unknown_name("model", name, specs())
    return specs()[name]


def create_model(
    name: str,
    weights: str | os.PathLike[str] | StateDict | None = None,
    num_classes: int | None = None,
    *,
    img_size: int | tuple[int, int] | None = None,
    on_download: OnDownload | None = None,
    **options: Any,
) -> nn.Module:
    """A registered model in eval mode, which maps images (N, C, H, W) to logits (N, num_classes).

    `weights` is a checkpoint file or a state dict, in the authors' naming or ours; without it the weights are those
    that the registration includes (`shiftvit_cifar10`), or random. "official" fetches the authors' file, once, and
    tells `on_download` how far it is. `num_classes` defaults to the registration's (1000). `options` replace single
    values of the variant's configuration (`embed_dim`, `depths`, …).

    Raises UsageError for an unknown name, option or combination; CheckpointError where the weights do not fit;
    MissingError where the authors' file cannot be had.
    """
    spec = get_spec(name)
    preprocessing = _preprocessing(spec, img_size)
    classes = spec.num_classes if num_classes is None else num_classes
    if classes < 1:
        raise UsageError(f"num_classes must be at least 1, not {classes}")
    loaded: checkpoints.Weights | None
    if weights == published.OFFICIAL:
        loaded, source = _official_weights(spec, classes, on_download)
    else:
        loaded, source = _weights(spec, weights, changed=bool(options) or classes != spec.num_classes)
    tensors = checkpoints.unwrapped(loaded.tensors) if loaded else {}  # no registered model has a part named `module`
    if loaded and spec.weights_options:
        options = {**spec.weights_options(tensors), **options}
    module = _build(spec, options, classes, preprocessing)
    if loaded:
        checkpoints.load_into(module, spec.adapt(tensors) if spec.adapt else tensors, source=source)
    module.card = ModelCard(  # type: ignore[assignment]  # nn.Module types every attribute as tensor or module
        name=name,
        family=spec.family,
        options=options,
        preprocessing=preprocessing,
        num_classes=classes,
        classes=spec.classes if classes == spec.num_classes else None,
        weights=source,
        weights_sha256=loaded.sha256 if loaded else None,
    )
    return module.eval()


def require_positive(option: str, value: object) -> None:
    """Raises UsageError where a size, or one of several, is below 1."""
    sizes = value if isinstance(value, tuple | list) else (value,)
    if any(isinstance(size, numbers.Integral) and size < 1 for size in sizes):
        raise UsageError(f"{option} must be at least 1, not {value}")


def _preprocessing(spec: ModelSpec, img_size: int | tuple[int, int] | None) -> Preprocessing:
    if img_size is None:
        return spec.preprocessing
    require_positive("img_size", img_size)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return dataclasses.replace(spec.preprocessing, input_size=(spec.preprocessing.input_size[0], height, width))


def _weights(
    spec: ModelSpec, weights: str | os.PathLike[str] | StateDict | None, *, changed: bool
) -> tuple[checkpoints.Weights | None, str]:
    """The weights to load and where they came from; none where they are to be random."""
    if isinstance(weights, Mapping):
        return checkpoints.from_state_dict(weights), "a state dict"
    if weights is not None:
        return checkpoints.read(weights), str(weights)
    if spec.included_weights and not changed:
        return checkpoints.read(checkpoints.included(spec.included_weights)), f"included {spec.included_weights}"
    return None, "random"


def _official_weights(
    spec: ModelSpec, num_classes: int, on_download: OnDownload | None
) -> tuple[checkpoints.Weights, str]:
    """The authors' weights and their address."""
    if spec.included_weights:
        raise UsageError(f"{spec.name} has its weights with it: leave --weights out")
    if num_classes != spec.num_classes:
        raise UsageError(
            f"the official weights of {spec.name} have {spec.num_classes} classes, not {num_classes}; "
            "leave --num-classes out, or pass your own weights with --weights FILE"
        )
    path = published.official(spec.name, spec.published, on_download=on_download)
    assert spec.published is not None
    return checkpoints.read(path), str(spec.published.url)


def _is_size(parameter: inspect.Parameter) -> bool:
    """Every whole number is a size or a count; `layers.check_heads` says more about heads."""
    return str(parameter.annotation).startswith(("int", "tuple[int")) and not parameter.name.endswith("heads")


def _build(spec: ModelSpec, options: Mapping[str, Any], num_classes: int, preprocessing: Preprocessing) -> nn.Module:
    accepted = inspect.signature(spec.factory).parameters
    for option in options:
        if option not in accepted:
            raise unknown_name(f"option of {spec.name}", option, set(accepted) - {"num_classes", "img_size"})
        if _is_size(accepted[option]):
            require_positive(option, options[option])
    config = {**spec.options, **options, "num_classes": num_classes}
    if "img_size" in accepted:
        config["img_size"] = preprocessing.input_size[1:]
    try:
        with torch.device("cpu"):
            return spec.factory(**config)
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{spec.name} cannot be built with {dict(options)}: {error}") from error
