"""Types shared by all layers: arrays, precisions, tensor specifications and reference outputs.

NumPy is not imported with this module: `edgevit --help` needs the precisions and starts without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
Dim: TypeAlias = int | Literal["batch"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
Feeds: TypeAlias = Mapping[str, Array]  # the inputs of one run by name
Run: TypeAlias = Callable[[Feeds], Mapping[str, Array]]  # inputs to outputs, both by name

Shape: TypeAlias = tuple[int, ...]

CropMode: TypeAlias = Literal["center", "squash", "border"]
Interpolation: TypeAlias = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]
ResizeMode: TypeAlias = Literal["crop", "fit", "stretch", "shorter_side"]
PadSide: TypeAlias = Literal["bottom_right", "center"]
PreprocessingSource: TypeAlias = Literal["published", "declared", "given", "assumed"]

Task: TypeAlias = Literal["classification", "features", "detection", "segmentation"]
# The outputs of a model for a task: class scores (N, K) or maps (N, K, h, w); the best class of each pixel; boxes and
# scores of every anchor; the same after non-maximum suppression; the maps of a detector's heads; those of a backbone.
OutputForm: TypeAlias = Literal["logits", "classes", "boxes", "nms", "raw", "features"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CROP_MODES: tuple[CropMode, ...] = get_args(CropMode)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
WHOLE_IMAGE_MODES = tuple(mode for mode in RESIZE_MODES if mode != "crop")
PAD_SIDES: tuple[PadSide, ...] = get_args(PadSide)
TASKS: tuple[Task, ...] = get_args(Task)
DENSE_TASKS: tuple[Task, ...] = ("detection", "segmentation")  # whose answers lie in the photo's pixels
OUTPUT_FORMS: tuple[OutputForm, ...] = get_args(OutputForm)
PREPROCESSING_SOURCES: tuple[PreprocessingSource, ...] = get_args(PreprocessingSource)
PHOTOS = "photos"  # the `kind` of a reference whose rows are photos


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, the NumPy dtype and the shape of an input or output; a dynamic dimension is `"batch"`."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def is_dynamic(self) -> bool:
        return "batch" in self.shape

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with `batch` in place of the dynamic dimension."""
        return tuple(batch if dim == "batch" else dim for dim in self.shape)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits: same rank, same static dimensions, a batch of at least 1."""
        return len(shape) == len(self.shape) and all(
            given >= 1 if want == "batch" else given == want for want, given in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Inputs and PyTorch's outputs for them, both by name, each array of shape (rows, ...).

    `kind` names the content of the rows: "photos" or "noise".
    """

    kind: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    # Largest absolute difference of PyTorch's float32 output from its float64 output; without those not measured.
    float32_error: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, size: int, start: int = 0) -> dict[str, Array]:
        """Return the inputs of `size` rows from `start` on, wrapping around at the last row."""
        import numpy as np

        rows = np.arange(start, start + size) % self.rows
        return {name: np.ascontiguousarray(array[rows]) for name, array in self.inputs.items()}


class RunnableEngine(Protocol):
    """The part of an engine that needs no runtime to describe."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Compute the outputs by name."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high
