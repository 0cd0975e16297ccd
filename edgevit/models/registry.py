"""Look up and create models by name. A new architecture is one file next to this one and one line in ARCHITECTURES."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from edgevit.errors import CheckpointError, MissingError, UsageError, unknown_name
from edgevit.files import first_line
from edgevit.images import Preprocessing
from edgevit.models import checkpoints
from edgevit.models.downloads import OFFICIAL, download_official
from edgevit.models.features import Backbone, backbone_tensors, padded_size
from edgevit.models.spec import ModelInfo, ModelSpec, StateDict
from edgevit.types import OutputForm

ARCHITECTURES = (
    "shiftvit",
    "deit",
    "t2t_vit",
    "swin",
    "vitae",
    "vitaev2",
    "visual_transformers",
    "mobileformer",
    "dense.systems",
    "dense.shapes",
)

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_OUTPUT_OPTIONS = {"outputs", "topk", "max_detections"}  # select outputs; weights fit all of their values


@cache
def specs() -> dict[str, ModelSpec]:
    """Return every registered model by name, in the order of ARCHITECTURES and of each SPECS."""
    found: dict[str, ModelSpec] = {}
    for architecture in ARCHITECTURES:
        for spec in importlib.import_module(f"edgevit.models.{architecture}").SPECS:
            if spec.name in found:
                raise AssertionError(f"two models are named {spec.name!r}")
            found[spec.name] = spec
    return found


def list_models(family: str | None = None, *, task: str | None = "classification") -> list[str]:
    """Return the names of the registered models of a task, of one family or all; `task` None stands for all tasks.

    Raises UsageError for an unknown family or task.
    """
    families, tasks = ({getattr(spec, name) for spec in specs().values()} for name in ("family", "task"))
    if family is not None and family not in families:
        raise unknown_name("family", family, families)
    if task is not None and task not in tasks:
        raise unknown_name("task", task, tasks)
    return [name for name, spec in specs().items() if family in (None, spec.family) and task in (None, spec.task)]


def get_spec(name: str) -> ModelSpec:
    """Return the registered model of that name. Raises UsageError that suggests similar names."""
    if name not in specs():
        raise unknown_name("model", name, specs())
    return specs()[name]


def create_model(
    name: str,
    weights: str | os.PathLike[str] | StateDict | None = None,
    num_classes: int | None = None,
    *,
    img_size: int | tuple[int, int] | None = None,
    features: bool = False,
    options: Mapping[str, Any] = _NO_OPTIONS,
) -> nn.Module:
    """Return a registered model in eval mode: images (N, C, H, W) to logits (N, num_classes).

    With `features` it is the model's backbone instead, which returns the feature maps c2..c5 by name (see
    `features.Backbone`); `weights` are then those of the model, or of a detector or segmenter with that backbone.

    `weights` is a checkpoint file, `FILE:KEY` for one of several state dicts in it, or a state dict, in the authors'
    naming or ours. Without it the model has its included weights (`shiftvit_cifar10`) or random ones. "official"
    downloads the authors' file once. `num_classes` defaults to the number in the weights, or the registered one
    (1000). `options` replace single values of the variant's configuration (`embed_dim`, `depths`, ...).

    Raises UsageError for an unknown name, option or combination, CheckpointError if the weights do not fit,
    MissingError if the authors' file cannot be downloaded.
    """
    spec = get_spec(name)
    preprocessing = _preprocessing(spec, img_size)
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, not {num_classes}")
    if features:
        _require_backbone(spec, num_classes)
    found = _find_weights(spec, weights, num_classes, changed=bool(options.keys() - _OUTPUT_OPTIONS))
    tensors, implied = _convert_tensors(spec, found.loaded)
    options = {**implied, **options}
    module: nn.Module
    if features:
        module, tensors = _build_backbone(spec, options, preprocessing, tensors, source=found.source)
        info = _model_info(spec, found, {**options, "features": True}, preprocessing, num_classes=None)
        info = dataclasses.replace(info, task="features", output_form="features")
    else:
        module, classes = _build_network(spec, options, preprocessing, tensors, num_classes)
        info = _model_info(spec, found, options, preprocessing, num_classes=classes)
    if found.loaded:
        checkpoints.load_into(module, tensors, source=found.source)
    module.model_info = info  # type: ignore[assignment]  # nn.Module types every attribute as tensor or module
    return module.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChoice:
    """The arguments of `create_model` that select the outputs."""

    features: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def output_options(name: str, form: OutputForm | None) -> OutputChoice:
    """Return the arguments with which `create_model` builds a model that outputs `form`; none for its default form.

    Raises UsageError if a classifier is to output anything but logits or features. Other models refuse unknown forms.
    """
    spec = get_spec(name)
    if form is None:
        return OutputChoice()
    if form == "features" and spec.backbone is not None:
        return OutputChoice(features=True)
    if "outputs" in inspect.signature(spec.factory).parameters:
        return OutputChoice(options={"outputs": form})
    if form not in ("logits", "features"):
        raise UsageError(f"{name} is a classifier; it outputs logits or features, not {form}")
    return OutputChoice(features=form == "features")  # which a classifier without maps refuses


def _output_form(spec: ModelSpec, options: Mapping[str, Any]) -> OutputForm:
    parameter = inspect.signature(spec.factory).parameters.get("outputs")
    form: OutputForm = "logits" if parameter is None else options.get("outputs", parameter.default)
    return form


def require_positive(option: str, value: object) -> None:
    """Raise UsageError if a size, or one of several, is below 1."""
    sizes = value if isinstance(value, tuple | list) else (value,)
    if any(isinstance(size, numbers.Integral) and size < 1 for size in sizes):
        raise UsageError(f"{option} must be at least 1, not {value}")


def _preprocessing(spec: ModelSpec, img_size: int | tuple[int, int] | None) -> Preprocessing:
    if img_size is None:
        return spec.preprocessing
    require_positive("img_size", img_size)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return dataclasses.replace(spec.preprocessing, input_size=(spec.preprocessing.input_size[0], height, width))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The weights for a model and their source; None and "random" if there are none."""

    loaded: checkpoints.Weights | None
    source: str


def _find_weights(
    spec: ModelSpec,
    weights: str | os.PathLike[str] | StateDict | None,
    num_classes: int | None,
    *,
    changed: bool,
) -> _Found:
    if isinstance(weights, str) and weights == OFFICIAL:
        return _official_weights(spec, num_classes)
    if isinstance(weights, Mapping):
        return _Found(loaded=checkpoints.from_state_dict(weights), source="a state dict")
    if weights is not None:
        return _Found(loaded=checkpoints.read(weights), source=str(weights))
    if spec.included_weights and not changed and num_classes in (None, spec.num_classes):
        included = checkpoints.read(checkpoints.included(spec.included_weights))
        return _Found(loaded=included, source=f"included {spec.included_weights}")
    return _Found(loaded=None, source="random")


def _official_weights(spec: ModelSpec, num_classes: int | None) -> _Found:
    """Return the authors' weights and their address. Raises UsageError, MissingError."""
    if spec.included_weights:
        raise UsageError(f"{spec.name} comes with its weights; omit --weights")
    if num_classes not in (None, spec.num_classes):
        raise UsageError(
            f"the official weights of {spec.name} have {spec.num_classes} classes, not {num_classes}; "
            "omit --num-classes, or pass your own weights with --weights FILE"
        )
    path = download_official(spec.name, spec.published)
    assert spec.published is not None
    try:
        return _Found(loaded=checkpoints.read(path), source=str(spec.published.url))
    except CheckpointError as error:  # a web page in place of the file, or a cut connection
        path.unlink(missing_ok=True)
        raise MissingError(
            f"the download from {spec.published.url} is no checkpoint ({error}) and was deleted; try again, "
            "or download it yourself and pass it with --weights FILE"
        ) from error


def _convert_tensors(spec: ModelSpec, loaded: checkpoints.Weights | None) -> tuple[StateDict, Mapping[str, Any]]:
    """Return the tensors of a checkpoint in edgevit's naming, and the options that they imply; nothing without one."""
    if loaded is None:
        return {}, {}
    # No registered model has a submodule called `module` or `model`, so the prefixes of wrappers can go.
    tensors = checkpoints.without_prefix(loaded.tensors)
    options = spec.weights_options(tensors) if spec.weights_options else {}
    return spec.convert_state_dict(tensors) if spec.convert_state_dict else tensors, options


def _model_info(
    spec: ModelSpec,
    found: _Found,
    options: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    num_classes: int | None,
) -> ModelInfo:
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        options=options,
        preprocessing=preprocessing,
        num_classes=num_classes,
        classes=spec.class_dataset if num_classes == spec.num_classes else None,
        task=spec.task,
        output_form=_output_form(spec, options),
        weights=found.source,
        weights_key=found.loaded.key if found.loaded else None,
        weights_tensors=len(found.loaded.tensors) if found.loaded else 0,
        weights_sha256=found.loaded.sha256 if found.loaded else None,
    )


def _require_backbone(spec: ModelSpec, num_classes: int | None) -> None:
    """Raise UsageError if a model has no feature maps, or if a number of classes is given for them."""
    if spec.backbone is None:
        having = ", ".join(each.name for each in specs().values() if each.backbone)
        raise UsageError(f"{spec.name} has no feature maps at strides 4 to 32; models that have: {having}")
    if num_classes is not None:
        raise UsageError("feature maps have no classes; omit num_classes")


def _build_backbone(
    spec: ModelSpec, options: Mapping[str, Any], preprocessing: Preprocessing, tensors: StateDict, *, source: str
) -> tuple[Backbone, StateDict]:
    """Return a model's backbone, and the tensors of a checkpoint that belong to it."""
    assert spec.backbone is not None
    own = inspect.signature(spec.backbone).parameters
    of_network = {option: value for option, value in options.items() if option not in own}
    channels, height, width = preprocessing.input_size
    padded = dataclasses.replace(preprocessing, input_size=(channels, *padded_size((height, width))))
    network = _build(spec, {**spec.backbone_options, **of_network}, spec.num_classes, padded)
    backbone = spec.backbone(network, **{option: value for option, value in options.items() if option in own})
    return backbone, backbone_tensors(tensors, backbone=backbone, network=network, source=source)


def _build_network(
    spec: ModelSpec,
    options: Mapping[str, Any],
    preprocessing: Preprocessing,
    tensors: StateDict,
    num_classes: int | None,
) -> tuple[nn.Module, int]:
    """Return the model and its number of classes: the requested one, that of the checkpoint, or the registered one."""
    classes = num_classes or spec.num_classes
    module = _build(spec, options, classes, preprocessing)
    if num_classes is not None or not tensors:
        return module, classes
    count = spec.class_count(tensors) if spec.class_count else _class_count(module, tensors)
    if count in (None, classes):
        return module, classes
    return _build(spec, options, count, preprocessing), count


def _class_count(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Return the number of classes in a checkpoint whose tensors differ from `module` only in that; else None."""
    own = module.state_dict()
    pairs = [(own[key].shape, tensors[key].shape) for key in own if key in tensors]
    differing = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    counts = {theirs[0] for ours, theirs in differing if ours[1:] == theirs[1:] and len(theirs)}
    return counts.pop() if len(counts) == 1 and all(ours[1:] == theirs[1:] for ours, theirs in differing) else None


def _is_size(parameter: inspect.Parameter) -> bool:
    """Whether an integer option is a size or a count; `layers.check_heads` checks the numbers of heads."""
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
        raise UsageError(f"{spec.name} cannot be built with {dict(options)}: {first_line(error)}") from error
