"""Compare the tensors of a graph with PyTorch's: the graph may compute one row only, parts, or channels in an order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgevit.export.graph import OnnxGraph
from edgevit.export.tensor_parts import ChannelOrder, KeptRow, channel_orders, joined_parts, kept_rows
from edgevit.pipeline.explain.figures import Difference, difference
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """Values of a graph or engine by their names; some are a row or parts of a tensor of PyTorch's, or reordered."""

    values: Mapping[str, Array]  # the joined ones too
    rows: Mapping[str, KeptRow]
    parts: Mapping[str, tuple[str, ...]]  # of the joined ones, along the last axis
    orders: Mapping[str, ChannelOrder]  # of PyTorch's channels in the value

    @classmethod
    def of(cls, graph: OnnxGraph, values: Mapping[str, Array]) -> GraphTensors:
        """Join the parts whose values are known to whole tensors."""
        parts = {whole: names for whole, names in joined_parts(graph).items() if all(name in values for name in names)}
        joined = {whole: np.concatenate([values[name] for name in names], -1) for whole, names in parts.items()}
        return cls({**values, **joined}, kept_rows(graph), parts, channel_orders(graph))

    def with_joined(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names and those of the tensors that these are parts of."""
        given = tuple(names)
        return (*given, *(whole for whole, parts in self.parts.items() if set(parts) <= set(given)))

    def computed(self, name: str) -> tuple[str, ...]:
        """Return the names of a value's parts, or its own: those that the graph computes."""
        return self.parts.get(name, (name,))

    def split(self, name: str, tensor: torch.Tensor) -> dict[str, Array]:
        """Return the arrays that the graph should compute to have a tensor in the place of a value."""
        names = self.computed(name)
        ends = np.cumsum([self.values[each].shape[-1] for each in names])
        pieces = np.split(tensor.numpy(), ends[:-1], -1) if len(names) > 1 else [tensor.numpy()]
        return {each: self._reordered(each, piece) for each, piece in zip(names, pieces, strict=True)}

    def _reordered(self, name: str, piece: Array) -> Array:
        """Return numbers of PyTorch's in the shape of a value, their channels in its order."""
        piece, order = piece.reshape(self.values[name].shape), self.orders.get(name)
        return piece if order is None else piece[..., np.argsort(order)]

    def part(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of PyTorch's tensor that the graph computes, a view."""
        row = self.rows.get(name)
        return tensor if row is None else tensor.narrow(row.axis, row.index % tensor.shape[row.axis], 1)

    def like(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a value in the shape and type of PyTorch's tensor; rows that the graph lacks are PyTorch's."""
        found = tensor.clone()
        part, order, value = self.part(name, found), self.orders.get(name), self.values[name]
        value = value if order is None else value[..., order]
        part.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(part.shape))
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
