"""Compare the tensors of a graph with PyTorch's, of which the graph may compute a row, a mean or parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgevit.export.graph import OnnxGraph
from edgevit.export.tensor_parts import (
    ChannelOrder,
    ChannelScale,
    KeptRow,
    MeanRow,
    channel_orders,
    channel_scales,
    joined_parts,
    kept_rows,
    mean_rows,
)
from edgevit.pipeline.explain.figures import Difference, difference
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """Values of a graph or engine by their names; some are rows or parts of PyTorch's, scaled or reordered."""

    values: Mapping[str, Array]  # the joined ones too
    rows: Mapping[str, KeptRow | MeanRow]
    parts: Mapping[str, tuple[str, ...]]  # of the joined ones, along the last axis
    orders: Mapping[str, ChannelOrder]  # of PyTorch's channels in the value
    scales: Mapping[str, ChannelScale]

    @classmethod
    def of(cls, graph: OnnxGraph, values: Mapping[str, Array]) -> GraphTensors:
        """Join the parts whose values are known to whole tensors."""
        parts = {whole: names for whole, names in joined_parts(graph).items() if all(name in values for name in names)}
        joined = {whole: np.concatenate([values[name] for name in names], -1) for whole, names in parts.items()}
        return cls(
            {**values, **joined},
            {**kept_rows(graph), **mean_rows(graph)},
            parts,
            channel_orders(graph),
            channel_scales(graph),
        )

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
        return {each: self._to_graph(each, piece) for each, piece in zip(names, pieces, strict=True)}

    def _to_graph(self, name: str, piece: Array) -> Array:
        """Return numbers of PyTorch's as the graph has them in the place of a value."""
        piece, order = piece.reshape(self.values[name].shape), self.orders.get(name)
        piece = piece if order is None else piece[..., np.argsort(order)]
        return piece * _factors(self.scales[name], piece) if name in self.scales else piece

    def _to_pytorch(self, name: str) -> torch.Tensor:
        """Return a value as PyTorch has it, but for axes of length 1."""
        value, order = self.values[name], self.orders.get(name)
        value = value / _factors(self.scales[name], value) if name in self.scales else value
        return torch.from_numpy(np.ascontiguousarray(value if order is None else value[..., order]))

    def part(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of PyTorch's tensor that the graph computes."""
        row = self.rows.get(name)
        if row is None:
            return tensor
        return _mean_of(row, tensor) if isinstance(row, MeanRow) else _rows_of(row, tensor)

    def like(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a value in the shape and type of PyTorch's tensor; rows that the graph lacks are PyTorch's.

        Rows of which the graph has the mean are PyTorch's, moved by the difference of the means.
        """
        found = tensor.clone()
        row, value = self.rows.get(name), self._to_pytorch(name)
        rows = found if row is None else _rows_of(row, found)
        if isinstance(row, MeanRow):
            mean = _mean_of(row, found)
            rows.add_(value.reshape(mean.shape) - mean)
        else:
            rows.copy_(value.reshape(rows.shape))
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
        if row is not None and (len(shape) != tensor.ndim or not _has_rows(tensor, row)):
            return False
        return _longer_axes(shape) == _longer_axes(self.part(name, tensor).shape)

    def _noise(self, name: str, tensor: torch.Tensor) -> float:
        return compare_tensors([self.like(name, tensor)], [tensor]).noise_to_signal


def _factors(scale: ChannelScale, value: Array) -> Array:
    """Return the factors in a shape that multiplies a value."""
    shape = [1] * value.ndim
    shape[scale.axis] = len(scale.factors)
    return scale.factors.reshape(shape)


def _rows_of(row: KeptRow | MeanRow, tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows of PyTorch's tensor that one of the graph's is made of, a view."""
    if isinstance(row, KeptRow):
        return tensor.narrow(row.axis, row.index % tensor.shape[row.axis], 1)
    for axis, start, end in row.ranges:
        tensor = tensor.narrow(axis, start, end - start)
    return tensor


def _mean_of(row: MeanRow, tensor: torch.Tensor) -> torch.Tensor:
    return _rows_of(row, tensor).mean([axis for axis, _, _ in row.ranges], keepdim=True)


def _has_rows(tensor: torch.Tensor, row: KeptRow | MeanRow) -> bool:
    if isinstance(row, KeptRow):
        return row.index < tensor.shape[row.axis]
    return all(end <= tensor.shape[axis] for axis, _, end in row.ranges)


def compare_tensors(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Difference:
    return difference([_array(tensor) for tensor in actual], [_array(tensor) for tensor in expected])


def _longer_axes(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().double().numpy()
    return array
