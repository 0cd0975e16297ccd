"""Load a model by registered name, `module:factory`, `file.py:factory`, or from an nn.Module."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from edgevit.errors import UsageError, unknown_name
from edgevit.images import Preprocessing
from edgevit.models import checkpoints, hubs, registry
from edgevit.models.description import (
    ModelDescription,
    ModelOrigin,
    for_photos,
    is_hub_name,
    slug,
    with_preprocessing,
)
from edgevit.models.downloads import OFFICIAL
from edgevit.models.factories import MODEL_FORMS, call_factory, factories_in
from edgevit.models.initialization import randomize
from edgevit.models.preprocessing import declared_classes, declared_preprocessing, declared_size
from edgevit.models.spec import ModelInfo
from edgevit.types import OutputForm, PreprocessingSource, TensorSpec

SEED = 0  # for random weights and noise
_DEFAULT_SIZE = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel(ModelDescription):
    """A module with everything an export needs to know about it. `example` has one tensor per input, batch first."""

    module: nn.Module
    example: tuple[torch.Tensor, ...]
    output_names: tuple[str, ...] | None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return _specs(self.example, self.input_names)

    def with_batch(self, batch: int) -> LoadedModel:
        return replace(self, example=tuple(_rows(tensor[:1], batch) for tensor in self.example))


def from_name(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    outputs: OutputForm | None = None,
    preprocessing: object = None,
) -> LoadedModel:
    """Load the MODEL of a command line: a registered name, a model of timm or Hugging Face, or a user's factory.

    The forms are listed in `factories.MODEL_FORMS`. A registered model without weights gets random ones that keep its
    activations alive; `weights` is described in `registry.create_model`. `img_size` is a side or (height, width).
    `input_shapes` gives a factory's inputs by name, batch included; without it the input is one RGB image
    (batch, 3, height, width), of the size that the model declares if `img_size` is None. `arguments` are a factory's.
    `outputs` selects what a registered model outputs, see `registry.output_options`. `preprocessing` are the user's
    own settings, see `description.with_preprocessing`.
    Raises UsageError, CheckpointError, MissingError, and ExportError if the user's code fails.
    """
    registry.require_positive("img_size", img_size)
    registry.require_positive("batch", batch)
    if arguments and (":" not in name or is_hub_name(name)):
        raise UsageError("--arg requires a factory, MODEL as file.py:factory")
    if outputs is not None and ":" in name:
        raise UsageError("--outputs requires a registered model; let forward() of yours return what you want")
    if ":" in name:
        inputs = _Inputs(input_shapes, img_size, batch, preprocessing)
        if is_hub_name(name):
            return _from_hub(name, inputs, weights=weights, num_classes=num_classes)
        if num_classes is not None:
            raise UsageError("--num-classes requires a registered model; set the number of classes in your factory")
        model = _from_factory(name, inputs, weights=weights, arguments=arguments or {})
        _require_size(model, img_size)
        return model
    if name.endswith(".py"):
        raise UsageError(factories_in(Path(name)))
    if input_shapes:
        raise UsageError("--input-shape requires a factory, MODEL as file.py:factory; use --img-size")
    choice = registry.output_options(name, outputs)
    module = registry.create_model(
        name, weights, num_classes, img_size=img_size, features=choice.features, options=choice.options
    )
    draw_weights(module)
    return from_module(module, batch=batch, preprocessing=preprocessing)


def draw_weights(module: nn.Module) -> None:
    """Draw the weights of a registered model from SEED and record that, unless it has weights from a checkpoint."""
    info = _model_info(module)
    if info.weights == "random":
        randomize(module, seed=SEED)
        module.model_info = replace(info, weights=f"random (seed {SEED})")  # type: ignore[assignment]  # as in registry


def from_module(
    module: nn.Module,
    *,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch: int = 1,
    name: str | None = None,
    preprocessing: object = None,
) -> LoadedModel:
    """Wrap a module in memory. Raises UsageError if it is no nn.Module, or if its input is unknown.

    `preprocessing` are the user's own settings, see `description.with_preprocessing`. Without them UsageError is also
    raised if the module declares one that edgevit does not have.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"a model is {MODEL_FORMS}, or a torch.nn.Module, not a {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("torch.export does not support TorchScript; pass the original nn.Module")
    registry.require_positive("batch", batch)
    if hasattr(module, "model_info") and isinstance(module.model_info, ModelInfo):
        model = _from_model_info(module, module.model_info, example_input, batch)
        return model if preprocessing is None else with_preprocessing(model, preprocessing)
    if example_input is None:
        raise UsageError(
            f"the input of {type(module).__name__} is unknown; pass example_input=torch.rand(1, 3, 224, 224)"
        )
    example = _examples(example_input, batch)
    declared, source = _preprocessing_of(module, example, replaced=preprocessing is not None)
    model = LoadedModel(
        name=name or slug(type(module).__name__),
        module=in_eval_mode(module),
        example=example,
        input_names=tuple(forward_names(module, len(example))),
        output_names=None,
        preprocessing=declared,
        preprocessing_source=source,
        classes=declared_classes(module),
        origin=ModelOrigin(),
    )
    return model if preprocessing is None else with_preprocessing(model, preprocessing)


def forward_names(module: nn.Module, count: int) -> list[str]:
    """Return the names of the first `count` parameters of `forward`. Raises UsageError if it has fewer."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += [f"input_{index}" for index in range(len(names), count)]
    if len(names) < count:
        raise UsageError(f"{type(module).__name__}.forward takes {len(names)} inputs, but {count} were given")
    return names[:count]


def in_eval_mode(module: nn.Module) -> nn.Module:
    """Return the module in eval mode; an exported program (`torch.export`) has one mode and refuses `eval()`."""
    with suppress(NotImplementedError):
        module.eval()  # the result is not used: a train() of the user's own may return nothing
    return module


@contextmanager
def preserve_state(model: object) -> Iterator[None]:
    """Restore PyTorch's threads, and the training flags and buffers of a module and its submodules, on exit.

    Tensors that forward() kept in inference mode, which autograd refuses, become ordinary ones. Anything but a module
    has no state.
    """
    modules = tuple(model.modules()) if isinstance(model, nn.Module) else ()
    parts = [part for part in modules if not isinstance(part, torch.jit.ScriptModule)]  # refused by the export
    flags = [part.training for part in parts]
    buffers = [_Buffer.of(part, name) for part in parts for name in part._buffers]
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for part, flag in zip(parts, flags, strict=True):
            part.training = flag
            _leave_inference_mode(part)
        for buffer in buffers:
            buffer.restore()


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer of a module, and a copy of its values if it has any."""

    part: nn.Module
    name: str
    tensor: torch.Tensor | None
    values: torch.Tensor | None

    @classmethod
    def of(cls, part: nn.Module, name: str) -> _Buffer:
        tensor = part._buffers[name]
        values = None if tensor is None or not _has_values(tensor) else tensor.detach().clone()
        return cls(part, name, tensor, values)

    def restore(self) -> None:
        """Put the buffer back with its values; one that has them is not written to, as autograd may have saved it."""
        self.part._buffers[self.name] = self.tensor
        if self.tensor is not None and self.values is not None and not torch.equal(self.tensor, self.values):
            with torch.no_grad():
                self.tensor.copy_(self.values)


def _has_values(tensor: torch.Tensor) -> bool:
    without = is_lazy(tensor) or tensor.is_meta
    return not without and tensor.layout == torch.strided and not tensor.is_quantized


def _leave_inference_mode(part: nn.Module) -> None:
    for name, value in vars(part).items():
        if isinstance(value, torch.Tensor) and value.is_inference():
            vars(part)[name] = value.clone()


def class_names(dataset: str) -> tuple[str, ...]:
    """Return the class names of a dataset in the order of the logits."""
    # COCO's and ADE20K's are equal, name by name, to those of mmdet (mmdet/datasets/coco.py) and mmseg
    # (mmseg/datasets/ade.py); the ids of COCO, from 1 to 90 with gaps, to those of mmdet's DETR with 91 classes.
    path = resources.files("edgevit") / "data" / f"{dataset}_classes.tsv"
    return tuple(line.split("\t")[-1] for line in path.read_text("utf-8").splitlines())


def _from_model_info(
    module: nn.Module, info: ModelInfo, example_input: torch.Tensor | Sequence[torch.Tensor] | None, batch: int
) -> LoadedModel:
    preprocessing: Preprocessing | None = info.preprocessing
    if example_input is None:
        example: tuple[torch.Tensor, ...] = (torch.zeros(batch, *info.preprocessing.input_size),)
    else:
        example = _examples(example_input, batch)
        preprocessing = for_photos(info.preprocessing, _specs(example))
    return LoadedModel(
        name=info.name,
        module=in_eval_mode(module),
        example=example,
        input_names=("images",),
        output_names=("logits",) if info.task == "classification" else None,
        preprocessing=preprocessing,
        preprocessing_source=None if preprocessing is None else "published",
        classes=class_names(info.classes) if info.classes else None,
        origin=ModelOrigin(
            family=info.family,
            source=info.name,
            options=dict(info.options),
            num_classes=info.num_classes,
            weights="random (create_model)" if info.weights == "random" else info.weights,  # no seed draws these again
            weights_key=info.weights_key,
            weights_tensors=info.weights_tensors,
            weights_sha256=info.weights_sha256,
            task=info.task,
            output_form=info.output_form,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs that the user asks for."""

    shapes: Mapping[str, Sequence[int]] | None
    img_size: int | tuple[int, int] | None
    batch: int
    preprocessing: object

    def describe(self, module: nn.Module, name: str) -> LoadedModel:
        """Return the module with these inputs."""
        example = self._example_for(module)
        return from_module(module, example_input=example, name=name, preprocessing=self.preprocessing)

    def _example_for(self, module: nn.Module) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """Return zeros for each named input, or for one RGB image of the size requested, declared, or 224 x 224."""
        if not self.shapes:
            size = self.img_size or declared_size(module) or _DEFAULT_SIZE
            height, width = (size, size) if not isinstance(size, tuple) else size
            return torch.zeros(self.batch, 3, height, width, device="cpu")
        if self.img_size is not None:
            raise UsageError("--img-size and --input-shape exclude each other; the shape includes the size")
        for name, shape in self.shapes.items():
            registry.require_positive(f"--input-shape {name}", tuple(shape))
            if shape[0] != self.batch:
                raise UsageError(f"--input-shape {name} starts with a batch of {shape[0]}, but --batch is {self.batch}")
        return _ordered(module, {name: torch.zeros(*shape, device="cpu") for name, shape in self.shapes.items()})


def _from_factory(
    name: str, inputs: _Inputs, *, weights: str | os.PathLike[str] | None, arguments: Mapping[str, Any]
) -> LoadedModel:
    if weights == OFFICIAL:
        raise UsageError(f"--weights official requires a registered model; pass the weights of {name} as a file")
    module = in_eval_mode(call_factory(name, arguments))
    read = None if weights is None else _load_weights(module, weights)
    if isinstance(getattr(module, "model_info", None), ModelInfo):
        model = from_module(module, batch=inputs.batch, preprocessing=inputs.preprocessing)
    else:
        place, _, attribute = name.rpartition(":")
        stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
        model = inputs.describe(module, slug(f"{stem}_{attribute}"))
        model = replace(model, origin=replace(model.origin, source=name))
    return model if read is None else _with_weights(model, str(weights), read)


def _from_hub(
    name: str, inputs: _Inputs, *, weights: str | os.PathLike[str] | None, num_classes: int | None
) -> LoadedModel:
    found = hubs.create_hub_model(name, num_classes=num_classes, img_size=inputs.img_size, download=weights == OFFICIAL)
    module = in_eval_mode(found.module)
    read = None if weights in (None, OFFICIAL) else _load_weights(module, weights)
    model = inputs.describe(module, slug(found.name.partition(":")[2]))
    model = replace(model, origin=replace(model.origin, source=found.name, weights=found.weights))
    return model if read is None else _with_weights(model, str(weights), read)


def _load_weights(module: nn.Module, weights: str | os.PathLike[str]) -> checkpoints.Weights:
    read = checkpoints.read(weights)
    checkpoints.load_into(module, {**read.tensors, **read.extra}, source=str(weights))
    return read


def _with_weights(model: LoadedModel, source: str, read: checkpoints.Weights) -> LoadedModel:
    """Return the model with the checkpoint that was loaded into it as the origin of its weights."""
    origin = replace(
        model.origin,
        weights=source,
        weights_key=read.key,
        weights_tensors=len(read.tensors),
        weights_sha256=read.sha256,
    )
    return replace(model, origin=origin)


def _ordered(module: nn.Module, example: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the examples in the order of `forward`'s parameters. Raises UsageError if a name is none of them."""
    names = forward_names(module, len(example))
    for name in example:
        if name not in names:
            raise unknown_name(f"input of {type(module).__name__}.forward", name, names)
    return tuple(example[name] for name in names)


def _require_size(model: LoadedModel, img_size: int | tuple[int, int] | None) -> None:
    """Raise UsageError if a factory returned a registered model built for another size."""
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    own = tuple(model.example[0].shape[2:])
    if size is not None and model.origin.family is not None and own != size:
        raise UsageError(
            f"your factory built {model.name} for images of {own[0]} x {own[1]}, not --img-size {size[0]}x{size[1]}; "
            "pass img_size to create_model there"
        )


def _examples(example_input: torch.Tensor | Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """Return the example as a tuple of tensors with `batch` rows; an example with several rows keeps its own number."""
    example = (example_input,) if isinstance(example_input, torch.Tensor) else tuple(example_input)
    if not example or not all(isinstance(tensor, torch.Tensor) and tensor.ndim > 0 for tensor in example):
        raise UsageError("example_input must be a tensor or a sequence of tensors, with the batch as the first axis")
    for tensor in example:
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise UsageError(
                f"example_input is {str(tensor.dtype).removeprefix('torch.')}; convert module and input to float32 "
                "(module.float()) and request a lower precision with precision="
            )
    if len({len(tensor) for tensor in example}) != 1:
        raise UsageError("the examples have different batch sizes; every input needs the batch as its first axis")
    if batch > 1 and len(example[0]) == 1:
        example = tuple(_rows(tensor, batch) for tensor in example)
    return tuple(tensor.detach().cpu().contiguous() for tensor in example)


def _rows(row: torch.Tensor, count: int) -> torch.Tensor:
    """Return a tensor of one row with `count` copies of it."""
    return row.repeat(count, *([1] * (row.ndim - 1)))


def _preprocessing_of(
    module: nn.Module, example: tuple[torch.Tensor, ...], *, replaced: bool
) -> tuple[Preprocessing | None, PreprocessingSource | None]:
    """Return the preprocessing that the module declares, or ImageNet's if its only input looks like an RGB photo.

    One that cannot be read is no error if the user's own settings replace it.
    """
    try:
        declared = declared_preprocessing(module)
    except UsageError:
        if not replaced:
            raise
        declared = None
    preprocessing = for_photos(declared or Preprocessing(), _specs(example))
    if preprocessing is None:
        return None, None
    return preprocessing, "declared" if declared else "assumed"


def _specs(example: Sequence[torch.Tensor], names: Sequence[str] | None = None) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in zip(names or map(str, range(len(example))), example, strict=True)
    )


def _model_info(module: nn.Module) -> ModelInfo:
    assert isinstance(module.model_info, ModelInfo)
    return module.model_info
