"""Load the MODEL of an export: an ONNX file, or anything that `models.loading` makes a module of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundles.source_model import PytorchSource
from edgevit.errors import UsageError
from edgevit.latency.candidate import PYTORCH_MODEL
from edgevit.models.description import ModelDescription, with_classes, with_preprocessing
from edgevit.pipeline.naming import with_distinct_name, with_name
from edgevit.pipeline.onnx_model import OnnxModel, is_onnx_file, load_onnx_model
from edgevit.runtimes.pytorch import load_torch
from edgevit.types import OutputForm

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgevit.models.loading import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options that decide what is loaded, as `edgevit.export_model` and the command line have them."""

    name: str | None = None  # of the model, with which the names of its bundles begin
    weights: str | os.PathLike[str] | None = None
    num_classes: int | None = None
    img_size: int | tuple[int, int] | None = None
    outputs: OutputForm | None = None
    batch: int | None = None  # None stands for 1, or for the fixed one of an ONNX file
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None  # of a module in memory
    preprocessing: object = None
    classes: Path | None = None
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of a factory

    def load(self, model: str | nn.Module, out: Path) -> ModelDescription:
        """Load a model given by name, or describe a module in memory, under a name that is free in `out`.

        PyTorch is imported unless `model` is the name of an ONNX file. The errors are those of `loading.from_name` and
        `loading.from_module`; UsageError is also raised for options that do not apply to the model.
        """
        loaded = self._load_by_name(model) if isinstance(model, str) else self._describe(model)
        if self.classes is not None:
            loaded = with_classes(loaded, self.classes)
        return with_distinct_name(loaded, out) if self.name is None else with_name(loaded, self.name)

    def _load_by_name(self, name: str) -> ModelDescription:
        if self.example_input is not None:
            raise UsageError("example_input is for a module; a model given by name is exported for img_size")
        if is_onnx_file(name):
            return self._load_onnx_file(name)
        load_torch()  # raises MissingError without PyTorch
        from edgevit.models import loading

        model = loading.from_name(
            name,
            weights=self.weights,
            num_classes=self.num_classes,
            img_size=self.img_size,
            batch=self._batch,
            input_shapes=self.input_shapes,
            arguments=self.arguments,
            outputs=self.outputs,
            preprocessing=self.preprocessing,
        )
        return replace(model, origin=replace(model.origin, torch_options=self._torch_options(name, model)))

    def _torch_options(self, name: str, model: LoadedModel) -> str | None:
        """Return `ModelOrigin.torch_options` of a model given by name.

        A factory is called for one photo and without a number of classes then, for which there are no options.
        """
        is_registered = model.origin.family is not None
        if not is_registered:
            (first, *others) = model.inputs
            takes_photos = not others and len(first.shape) == 4 and first.shape[1] == 3
            if self.num_classes is not None or not takes_photos:
                return None
        source = PytorchSource(model=None if is_registered else name, weights=self.weights, arguments=self.arguments)
        return source.details.get(PYTORCH_MODEL, "")

    def _load_onnx_file(self, name: str) -> OnnxModel:
        given = {
            "--weights": self.weights,
            "--num-classes": self.num_classes,
            "--arg": self.arguments or None,
            "--outputs": self.outputs,
        }
        for option, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option} does not apply to {name}: an ONNX file has its weights, classes and outputs; "
                    "leave it out"
                )
        model = load_onnx_model(Path(name), img_size=self.img_size, batch=self.batch, input_shapes=self.input_shapes)
        return model if self.preprocessing is None else with_preprocessing(model, self.preprocessing)

    def _describe(self, module: nn.Module) -> LoadedModel:
        from edgevit.models import loading

        if any(option is not None for option in (self.weights, self.num_classes, self.img_size, self.outputs)):
            raise UsageError(
                "weights, num_classes, img_size and outputs are for a model given by name; apply them to your module"
            )
        return loading.from_module(
            module, example_input=self.example_input, batch=self._batch, preprocessing=self.preprocessing
        )

    @property
    def _batch(self) -> int:
        return 1 if self.batch is None else self.batch


@contextmanager
def restored_state(model: object) -> Iterator[None]:
    """Leave a module as it was, as `preserve_state` does; do nothing for a name."""
    if isinstance(model, str):
        yield
        return
    from edgevit.models.loading import preserve_state

    with preserve_state(model):
        yield
