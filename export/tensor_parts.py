"""Mark the tensors that a pass has left a part of or changed, and find them: those of PyTorch are whole.

A pass may leave one row of a tensor or the mean of its rows, compute a tensor in parts of its last axis, scale its
channels, or have them in another order.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.graph import OnnxGraph
from edgevit.types import Array

ChannelOrder = NDArray[np.int64]  # (C,)

# Keys of the metadata that ONNX files have for each tensor.
_ROW = "edgevit.kept_row"
_MEAN = "edgevit.mean_row"
_PART = "edgevit.joined_part"
_ORDER = "edgevit.channel_order"
_SCALE = "edgevit.channel_scale"


@dataclass(frozen=True, slots=True)
class KeptRow:
    """The place of a row in the tensor that has all of them."""

    axis: int
    index: int


@dataclass(frozen=True, slots=True)
class MeanRow:
    """The rows that one row is the mean of, as the axis, start and end of each range in the tensor that has all."""

    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ChannelScale:
    """Factors by which a tensor is larger than that of the PyTorch module, one for each entry of an axis."""

    axis: int
    factors: Array  # (C,), float32; none is 0


@dataclass(frozen=True, slots=True)
class JoinedPart:
    """One of the parts that make up a tensor along its last axis."""

    whole: str  # the name that the tensor had
    number: int
    count: int


def mark_kept_row(value: ir.Value, row: KeptRow) -> None:
    """Note that a tensor has one row of those that the PyTorch module computes."""
    value.metadata_props[_ROW] = f"{row.axis},{row.index}"


def mark_mean_row(value: ir.Value, row: MeanRow) -> None:
    """Note that a tensor has the mean of rows that the PyTorch module computes, and their axes with a length of 1."""
    value.metadata_props[_MEAN] = ";".join(f"{axis},{start},{end}" for axis, start, end in row.ranges)


def mark_joined_part(value: ir.Value, part: JoinedPart) -> None:
    """Note that a tensor is part of one that the PyTorch module computes."""
    value.metadata_props[_PART] = f"{part.number},{part.count},{part.whole}"


def mark_channel_order(value: ir.Value, order: ChannelOrder) -> None:
    """Note that the channels of the tensor of the PyTorch module are value[..., order]."""
    value.metadata_props[_ORDER] = ",".join(map(str, order.tolist()))


def mark_channel_scale(value: ir.Value, scale: ChannelScale) -> None:
    """Note that a tensor is the one of the PyTorch module times these factors, and those noted before."""
    before = value.metadata_props.get(_SCALE)
    factors = scale.factors if before is None else scale.factors * _decoded(before).factors
    value.metadata_props[_SCALE] = f"{scale.axis},{base64.b64encode(factors.astype('<f4').tobytes()).decode()}"


def kept_rows(graph: OnnxGraph) -> Mapping[str, KeptRow]:
    """Return the rows of the marked tensors by their names."""
    found = {}
    for name, text in _marked(graph, _ROW).items():
        axis, index = text.split(",")
        found[name] = KeptRow(int(axis), int(index))
    return found


def mean_rows(graph: OnnxGraph) -> Mapping[str, MeanRow]:
    """Return, by tensor name, the rows whose mean each marked tensor holds."""
    found = {}
    for name, text in _marked(graph, _MEAN).items():
        ranges = [each.split(",") for each in text.split(";")]
        found[name] = MeanRow(tuple((int(axis), int(start), int(end)) for axis, start, end in ranges))
    return found


def joined_parts(graph: OnnxGraph) -> Mapping[str, tuple[str, ...]]:
    """Return the names of the parts of each whole tensor, in their order; wholes that lack a part are left out."""
    found: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for name, text in _marked(graph, _PART).items():
        number, count, whole = text.split(",", 2)
        found[whole, int(count)][int(number)] = name
    return {
        whole: tuple(parts[number] for number in range(count))
        for (whole, count), parts in found.items()
        if len(parts) == count
    }


def channel_orders(graph: OnnxGraph) -> Mapping[str, ChannelOrder]:
    """Return the orders of the marked tensors by their names."""
    return {name: np.array(text.split(","), np.int64) for name, text in _marked(graph, _ORDER).items()}


def channel_scales(graph: OnnxGraph) -> Mapping[str, ChannelScale]:
    """Return the scales of the marked tensors by their names."""
    return {name: _decoded(text) for name, text in _marked(graph, _SCALE).items()}


def _decoded(scale: str) -> ChannelScale:
    axis, encoded = scale.split(",")
    return ChannelScale(int(axis), np.frombuffer(base64.b64decode(encoded), "<f4"))


def _marked(graph: OnnxGraph, key: str) -> Mapping[str, str]:
    values = (value for node in graph.model.graph for value in node.outputs)
    return {str(value.name): value.metadata_props[key] for value in values if key in value.metadata_props}
