"""ModelDescription: a model as the pipeline sees it, whatever it is made of; PyTorch is not needed.

`models.loading.LoadedModel` adds an nn.Module to it, `pipeline.onnx_model.OnnxModel` the graph of an ONNX file.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgevit.datasets import MAX_CLASSES_BYTES
from edgevit.errors import UsageError
from edgevit.files import first_line, os_reason
from edgevit.images import Preprocessing
from edgevit.models.preprocessing import PreprocessingOptions, parse_preprocessing
from edgevit.types import OutputForm, PreprocessingSource, Task, TensorSpec
from edgevit.untrusted import read_limited

if TYPE_CHECKING:
    from typing_extensions import Self

TIMM, HUGGING_FACE = "timm:", "hf:"

_Model = TypeVar("_Model", bound="ModelDescription")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """Source of a loaded model and of its weights, as a manifest records them."""

    family: str | None = None  # None for a module of the user's
    source: str | None = None  # registered name, the user's `file.py:factory`, `onnx:FILE`; None for one in memory
    options: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None  # of registered models
    weights: str = "as given"  # file, address, "included ..." or "random ..."
    weights_key: str | None = None  # container in the checkpoint, such as "model_ema"; None at the top level
    weights_tensors: int | None = None
    weights_sha256: str | None = None
    task: Task = "classification"
    output_form: OutputForm = "logits"
    fingerprint: str | None = None  # hash of class, structure and weights of a module in memory
    # Options of `edgevit latency --against torch` with which a bundle finds the model again; empty if it needs none,
    # None if no option names it. A manifest does not record them: they may contain folders.
    torch_options: str | None = None

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether the weights are known to be random. A checkpoint called random.pt has a hash."""
        return self.weights.startswith("random") and self.weights_sha256 is None

    @property
    def has_random_weights(self) -> bool:
        """Whether this is a registered model without a checkpoint."""
        return self.family is not None and self.lacks_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription(ABC):
    """Name, inputs, preprocessing, classes and origin of a model that is exported."""

    name: str
    input_names: tuple[str, ...]
    preprocessing: Preprocessing | None  # None if the input is no image
    preprocessing_source: PreprocessingSource | None  # None without preprocessing
    classes: tuple[str, ...] | None
    origin: ModelOrigin

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, with the batch size of a static export as their first axis."""

    @abstractmethod
    def with_batch(self, batch: int) -> Self:
        """Return the model with another batch size of a static export. Raises UsageError if its batch is fixed."""

    @property
    def batch(self) -> int:
        """The batch size of a static export."""
        return self.inputs[0].with_batch(1)[0]


def is_hub_name(name: str) -> bool:
    """Return whether a MODEL names a model of timm or Hugging Face."""
    return name.startswith((TIMM, HUGGING_FACE))


def with_preprocessing(model: _Model, settings: object) -> _Model:
    """Return the model with the user's preprocessing: `PreprocessingOptions`, or a source of `parse_preprocessing`.

    Raises UsageError if the model does not take images, or the settings contradict each other or its input.
    """
    shape = model.inputs[0].with_batch(1)
    if len(model.inputs) != 1 or len(shape) != 4 or shape[1] not in (1, 3):
        raise UsageError(f"preprocessing is for one image input (N, 1 or 3, H, W), but {model.name} takes {shape}")
    size = (shape[1], shape[2], shape[3])
    if isinstance(settings, PreprocessingOptions):
        gray = Preprocessing(input_size=size, mean=(0.0,), std=(1.0,)) if size[0] == 1 else None
        preprocessing = settings.apply(model.preprocessing or gray or Preprocessing(input_size=size))
    else:
        preprocessing = replace(parse_preprocessing(settings), input_size=size)
    return replace(model, preprocessing=preprocessing, preprocessing_source="given")


def with_classes(model: _Model, path: Path) -> _Model:
    """Return the model with the class names in a file, one a line in the order of the logits."""
    return replace(model, classes=read_class_names(path))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the class names in a text file, one a line in the order of the logits; empty lines at its end are ignored.

    Raises UsageError if it cannot be read or names fewer than two.
    """
    try:
        names = read_limited(path, limit_bytes=MAX_CLASSES_BYTES).decode("utf-8").rstrip("\n").splitlines()
    except (OSError, ValueError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else first_line(error)
        raise UsageError(f"cannot read the class names in {path}: {reason}") from error
    if len(names) < 2:
        raise UsageError(f"{path} has {len(names)} class names; give one a line, in the order of the logits")
    return tuple(name.strip() for name in names)


def describe_weights(origin: ModelOrigin) -> str | None:
    """Return the weights in one line: file, key, tensors, classes; None if no checkpoint was read."""
    if not origin.weights_tensors:
        return None
    key = f"key {origin.weights_key!r}, " if origin.weights_key else ""
    classes = f", {origin.num_classes} classes" if origin.num_classes else ""
    return f"weights: {origin.weights}, {key}{origin.weights_tensors} tensors{classes}"


def describe_preprocessing(model: ModelDescription) -> str | None:
    """Return where the preprocessing of a user's model comes from, and what it is, in one line."""
    how = f"{model.preprocessing}"
    return {
        "assumed": f"preprocessing assumed: {how}; if the model was trained otherwise, set --mean, --std, --resize, "
        "--crop-mode or --interpolation (edgevit export --help)",
        "declared": f"preprocessing of the model: {how}",
        "given": f"preprocessing as given: {how}",
    }.get(model.preprocessing_source or "")


def for_photos(preprocessing: Preprocessing, inputs: tuple[TensorSpec, ...]) -> Preprocessing | None:
    """Return the preprocessing for the size of the input; None unless it is one batch of photos with its channels."""
    first = inputs[0]
    shape = first.with_batch(1)
    if len(inputs) != 1 or len(shape) != 4 or first.dtype != "float32" or shape[1] != preprocessing.input_size[0]:
        return None
    return replace(preprocessing, input_size=(shape[1], shape[2], shape[3]))


def slug(name: str) -> str:
    """Return a name that can begin the name of a bundle."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "model"
