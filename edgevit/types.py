"""What travels between the stages: names, types and shapes of tensors, and the precisions that can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Dim: TypeAlias = int | Literal["batch"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: its name, its dtype by NumPy's name, and its shape with `"batch"` where dynamic."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def is_dynamic(self) -> bool:
        return "batch" in self.shape

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with a number in place of the dynamic batch."""
        return tuple(batch if dim == "batch" else dim for dim in self.shape)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits: equal rank, equal static dimensions, a batch of at least 1."""
        return len(shape) == len(self.shape) and all(
            given >= 1 if want == "batch" else given == want for want, given in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"
