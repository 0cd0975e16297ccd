"""Compute wide maps between two pointwise convolutions in slices of channels that stay in the processor's cache.

Used for ONNX Runtime (docs/forms.md). It runs an elementwise operator over a whole map before the next one begins, so
that a map larger than the cache is read from memory by each of them. A dynamic ReLU, max(a1 x, a2 x), are three such
operators and two changes of the layout, which take longer than the convolutions around them.

A convolution sums over its input channels: W x + b = b + sum_i W[:, i] x_i, for any slices x_i of the channels.
Elementwise operators and depthwise convolutions compute each channel from that channel alone, and the outputs of the
first convolution are independent of each other. So each slice is computed from end to end before the next one, and the
last convolution becomes the sum of one for each slice, which ONNX Runtime adds up inside the convolutions. A
concatenation of channels can take the place of the first convolution. Only the order of the last sum changes. Of
regions that follow each other, each second one is sliced, since the next begins at a sum. In int8, where the maps are a
quarter of the size and each partial sum would be rounded, the slices were 0.95 to 0.99 times as fast: there only the
maps between convolutions that stay in float are sliced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    has_constant_weights,
    initializer,
    insert,
    int64_initializer,
    remove_unused,
    replace_value,
    required_input,
    static_size,
)

_ELEMENTWISE = frozenset(
    {"Add", "Clip", "Div", "HardSigmoid", "HardSwish", "Max", "Min", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"}
)
_MIN_ELEMENTWISE = 3  # operators; with fewer, the convolutions of slices lose more than the cache saves
_SLICE_BYTES = 400_000  # of a slice of the largest map, per image
_BLOCK = 16  # channels in a block of ONNX Runtime's layout, 8 or 16: convolutions compute whole blocks


def slice_wide_maps(model: ir.Model) -> None:
    """Slice the maps in front of each pointwise convolution, back to the convolution or concatenation they begin at.

    Maps of unknown size stay, and those that anything else reads.
    """
    for node in list(model.graph):
        region = _region(node, model.graph)
        cuts = [] if region is None else _cuts(region)
        if region is not None and len(cuts) > 2:
            _Slicer(model.graph, region, cuts).run()
    remove_unused(model)


@dataclass(frozen=True, slots=True)
class _Region:
    """The node that computes the first map, those that compute each channel from itself, and the last convolution."""

    first: ir.Node
    body: tuple[ir.Node, ...]  # in the graph's order
    last: ir.Node

    @property
    def channels(self) -> int:
        return static_size(self.first.outputs[0], 1) or 0


def _region(last: ir.Node, graph: ir.Graph) -> _Region | None:
    """Return the region that ends in a pointwise convolution; None if there is none that can be sliced."""
    if not _is_pointwise(last):
        return None
    channels = static_size(last.inputs[0], 1)
    body: set[ir.Node] = set()
    first: ir.Node | None = None
    pending = [last.inputs[0]]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is None or channels is None or static_size(value, 1) != channels:
            return None
        if node in body or node is first:
            continue
        if first is None and (_is_pointwise(node) or _is_concatenation(node)):
            first = node
        elif _is_depthwise(node, channels):
            body.add(node)
            pending.append(node.inputs[0])
        elif node.op_type in _ELEMENTWISE and not node.domain and all(_is_sliceable(v, channels) for v in node.inputs):
            body.add(node)
            pending += [value for value in node.inputs if _is_map(value, channels)]
        else:
            return None
    if first is None or sum(node.op_type in _ELEMENTWISE for node in body) < _MIN_ELEMENTWISE:
        return None
    inside = {*body, last}
    outputs = [node.outputs[0] for node in (first, *body)]
    if any(value.is_graph_output() or any(use.node not in inside for use in value.uses()) for value in outputs):
        return None
    return _Region(first, tuple(node for node in graph if node in body), last)


def _is_pointwise(node: ir.Node) -> bool:
    """Whether the node is a 1x1 convolution in one group."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" and has_constant_weights(node) else None
    return weight is not None and weight.shape[2:] == (1, 1) and node.attributes.get_int("group", 1) == 1


def _is_depthwise(node: ir.Node, channels: int) -> bool:
    """Whether the node is a convolution that computes each channel from itself."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" and has_constant_weights(node) else None
    return weight is not None and len(weight) == channels == node.attributes.get_int("group", 1)


def _is_concatenation(node: ir.Node) -> bool:
    """Whether the node concatenates equal numbers of channels."""
    if node.op_type != "Concat" or node.attributes.get_int("axis", 0) != 1:
        return False
    sizes = {static_size(value, 1) for value in node.inputs}
    return len(sizes) == 1 and None not in sizes


def _dims(value: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    return list(value.shape) if value is not None and value.shape is not None else None


def _is_map(value: ir.Value | None, channels: int) -> bool:
    """Whether the value is a map with these channels, rather than one number per channel."""
    dims = _dims(value)
    return dims is not None and len(dims) == 4 and dims[1] == channels and dims[2:] != [1, 1]


def _has_channels(value: ir.Value | None, channels: int) -> bool:
    """Whether the value has one number or map per channel, which a slice takes its part of."""
    dims = _dims(value)
    return dims is not None and len(dims) in (3, 4) and dims[-3] == channels


def _is_sliceable(value: ir.Value | None, channels: int) -> bool:
    """Whether an operand has the same channels, or is the same for all of them."""
    dims = _dims(value)
    return value is None or (dims is not None and (len(dims) < 3 or dims[-3] in (1, channels)))


def _cuts(region: _Region) -> list[int]:
    """Return the borders of the slices, from 0 to the number of channels."""
    sizes = [_size_bytes(node.outputs[0]) for node in (region.first, *region.body)]
    count = 1 if None in sizes else round(max(size for size in sizes if size is not None) / _SLICE_BYTES)
    channels = region.channels
    if region.first.op_type == "Concat":
        parts = len(region.first.inputs)
        count = next(number for number in range(min(max(count, 1), parts), 0, -1) if parts % number == 0)
        return [channels * i // count for i in range(count + 1)]
    blocks = math.ceil(channels / _BLOCK)
    count = max(1, min(count, blocks))
    return [*(blocks * i // count * _BLOCK for i in range(count)), channels]


def _size_bytes(value: ir.Value) -> int | None:
    """Return the size of one image's map; None if it is unknown."""
    sizes = [static_size(value, axis) for axis in (1, 2, 3)]
    if value.dtype is None or None in sizes:
        return None
    return int(math.prod(size for size in sizes if size is not None) * value.dtype.itemsize)


class _Slicer:
    """Writes the nodes of all slices in front of the last convolution."""

    def __init__(self, graph: ir.Graph, region: _Region, cuts: list[int]) -> None:
        self._graph, self._region = graph, region
        self._slices = list(itertools.pairwise(cuts))
        self._values: dict[ir.Value, list[ir.Value]] = {}  # the slices of each value

    def run(self) -> None:
        region, last = self._region, self._region.last
        total: ir.Value | None = None
        for index in range(len(self._slices)):
            self._first(index)
            for node in region.body:
                self._body(node, index)
            part = self._last(index)
            if total is not None:
                part = self._insert("Add", [total, part], {}, f"{last.name}_sum_{index}", like=last.outputs[0])
            total = part
        assert total is not None
        replace_value(last.outputs[0], total)

    def _first(self, index: int) -> None:
        node, (start, stop) = self._region.first, self._slices[index]
        if node.op_type == "Concat":
            size = self._region.channels // len(node.inputs)
            parts = [value for value in node.inputs[start // size : stop // size] if value is not None]
            if len(parts) == 1:
                self._values.setdefault(node.outputs[0], []).append(parts[0])
            else:
                self._copy(node, parts, index)
        else:
            self._copy(node, self._rows(node, index), index)

    def _body(self, node: ir.Node, index: int) -> None:
        start, stop = self._slices[index]
        if node.op_type == "Conv":
            self._copy(node, self._rows(node, index), index, group=stop - start)
        else:
            self._copy(node, [self._sliced(value, node, index) for value in node.inputs], index)

    def _last(self, index: int) -> ir.Value:
        """Insert the last convolution of a slice; the first slice has the bias."""
        node, (start, stop) = self._region.last, self._slices[index]
        name, weight = f"{node.name}_{index}", constant(node.inputs[1])
        assert weight is not None
        inputs = [
            self._values[required_input(node)][index],
            initializer(self._graph, f"{name}.weight", weight[:, start:stop]),
            *(node.inputs[2:] if index == 0 else ()),
        ]
        return self._insert("Conv", inputs, node.attributes, name, like=node.outputs[0])

    def _rows(self, node: ir.Node, index: int) -> list[ir.Value | None]:
        """Return the inputs of a convolution that computes the channels of a slice only."""
        start, stop = self._slices[index]
        source = required_input(node)
        arrays = [array for array in map(constant, node.inputs[1:]) if array is not None]
        return [
            self._values[source][index] if source in self._values else source,
            *(
                initializer(self._graph, f"{node.name}_{index}.{kind}", array[start:stop])
                for kind, array in zip(("weight", "bias"), arrays, strict=False)
            ),
        ]

    def _sliced(self, value: ir.Value | None, node: ir.Node, index: int) -> ir.Value | None:
        """Return the part of an operand that a slice reads."""
        if value is None or not _has_channels(value, self._region.channels):
            return value
        if value not in self._values:
            self._values[value] = self._split(value, node)
        return self._values[value][index]

    def _split(self, value: ir.Value, node: ir.Node) -> list[ir.Value]:
        """Return the slices of an operand with one number per channel."""
        name, axis = f"{node.name}.{value.name}", len(value.shape or ()) - 3
        array = constant(value)
        if array is not None:
            return [
                initializer(self._graph, f"{name}_{start}", np.take(array, range(start, stop), axis))
                for start, stop in self._slices
            ]
        sizes = int64_initializer(self._graph, f"{name}.slices", [stop - start for start, stop in self._slices])
        split = ir.node(
            "Split",
            [value, sizes],
            {"axis": axis},
            num_outputs=len(self._slices),
            name=f"{node.name}_{value.name}_Split",
        )
        self._graph.insert_before(self._region.last, split)
        for output, (start, stop) in zip(split.outputs, self._slices, strict=True):
            copy_shape_and_type(output, value)
            dims = list(value.shape or ())
            output.shape = ir.Shape([*dims[:axis], stop - start, *dims[axis + 1 :]])
        return list(split.outputs)

    def _copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], index: int, *, group: int | None = None) -> None:
        """Insert a slice of a node."""
        attributes = dict(node.attributes)
        if group is not None:
            attributes["group"] = ir.AttrInt64("group", group)
        output = self._insert(node.op_type, inputs, attributes, f"{node.name}_{index}", like=node.outputs[0])
        start, stop = self._slices[index]
        dims = list(node.outputs[0].shape or ())
        output.shape = ir.Shape([dims[0], stop - start, *dims[2:]])
        self._values.setdefault(node.outputs[0], []).append(output)

    def _insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr],
        name: str,
        *,
        like: ir.Value,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=name)
        return insert(node, before=self._region.last, graph=self._graph, like=like, shape=like.shape)
