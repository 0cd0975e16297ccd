"""Compare the tensors of a graph with PyTorch's, of which the graph may compute one row only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgevit.export.kept_rows import KeptRow
from edgevit.pipeline.explain.figures import Difference, difference
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """Values of a graph or engine by their names, and those of them that are one row of a tensor of PyTorch's."""

    values: Mapping[str, Array]
    rows: Mapping[str, KeptRow]

    def part(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of PyTorch's tensor that the graph computes, a view."""
        row = self.rows.get(name)
        return tensor if row is None else tensor.narrow(row.axis, row.index % tensor.shape[row.axis], 1)

    def like(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a value in the shape and type of PyTorch's tensor; rows that the graph lacks are PyTorch's."""
        found = tensor.clone()
        part = self.part(name, found)
        part.copy_(torch.from_numpy(np.ascontiguousarray(self.values[name])).reshape(part.shape))
        return found

    def closest(self, tensor: torch.Tensor, names: Iterable[str]) -> str | None:
        """Return the most similar of the values that fit, one of rows only if no whole one fits; None if none does."""
        fitting = [name for name in names if self.fits(name, tensor)]
        fitting = [name for name in fitting if name not in self.rows] or fitting
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        return min(fitting, key=lambda name: self._noise(name, tensor))

    def fits(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a value has the shape of a tensor or of its row, axes of length 1 aside."""
        if name not in self.values or not tensor.is_floating_point():
            return False
        row, shape = self.rows.get(name), self.values[name].shape
        if row is not None and (len(shape) != tensor.ndim or row.index >= tensor.shape[row.axis]):
            return False
        return _longer_axes(shape) == _longer_axes(self.part(name, tensor).shape)

    def _noise(self, name: str, tensor: torch.Tensor) -> float:
        return compare_tensors([self.like(name, tensor)], [tensor]).noise_to_signal


def compare_tensors(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Difference:
    return difference([_array(tensor) for tensor in actual], [_array(tensor) for tensor in expected])


def _longer_axes(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().double().numpy()
    return array
