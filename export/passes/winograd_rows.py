"""Compute 3x3 convolutions with two thirds of the multiplications, by Winograd's minimal filtering F(2, 3) of rows.

Two rows y of a convolution with three rows g of weights need four rows d of the input, and four products of rows, each
a convolution along the row, instead of six (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
arXiv 1509.09308, section 4):

    m0 = (d0 - d2) * g0    m1 = (d1 + d2) * (g0 + g1 + g2) / 2    m2 = (d2 - d1) * (g0 - g1 + g2) / 2
    m3 = (d1 - d3) * g2    y0 = m0 + m1 + m2                      y1 = m1 - m2 - m3

Maps are computed by halves: their even rows e and odd rows o, (N, C, H/2, W) each, which a view of the map, (N, C, H/2,
2 W), has side by side. The d1 and d2 of all pairs of rows are e and o, d0 are o a row before, and d3 are e a row
behind. Elementwise operators between convolutions are computed on halves, too, so that maps are split and joined at
the ends alone. The sums differ from those of the convolution by roundings.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    initializer,
    insert,
    insert_split,
    int64_initializer,
    readers_of,
    remove_unused,
    replace_value,
    required_input,
)
from edgevit.export.macs import WORK
from edgevit.types import Array

# With fewer channels or multiplications, the sums of rows take the time that the products save, and more of it if the
# maps are larger than a processor's caches: docs/forms.md.
_MIN_INPUTS, _MIN_OUTPUTS, _MIN_MACS = 32, 48, 8_000_000
_MAX_CACHED_BYTES, _MIN_CHANNELS_UNCACHED = 4_000_000, 128
_ELEMENTWISE = frozenset({
    "Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min",
    "Mul", "Neg", "PRelu", "Relu", "Sigmoid", "Softplus", "Sub", "Tanh",
})  # fmt: skip
_MAX_DEPTH = 8  # of elementwise operators between two convolutions

_Halves = tuple[ir.Value, ir.Value]  # the even and the odd rows


def winograd_rows(model: ir.Model) -> None:
    """Replace each float32 3x3 convolution of stride 1 in one group whose maps have an even number of rows."""
    writer = _HalvesWriter(model.graph)
    for node in list(model.graph):
        writer.visit(node)
    remove_unused(model)


class _HalvesWriter:
    """Rewrites the nodes of a graph in their order."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._halves: dict[ir.Value, _Halves] = {}
        self._not_joined: set[ir.Value] = set()  # values that are computed by halves alone

    def visit(self, node: ir.Node) -> None:
        """Compute a node by halves if it can be; otherwise join those of its inputs that are."""
        if _is_dense_3x3(node):
            even, odd = self._halves_of(required_input(node), node)
            self._replace(node, _convolve(node, even, odd, self._graph))
        elif self._is_computed_by_halves(node):
            even, odd = (self._copy(node, index, suffix) for index, suffix in enumerate(("even", "odd")))
            self._replace(node, (even, odd))
        else:
            for value in node.inputs:
                if value is not None and value in self._not_joined:
                    self._join(value, before=node)

    def _is_computed_by_halves(self, node: ir.Node) -> bool:
        """Whether a node is elementwise, one of its maps is computed by halves, and no other map is split in vain."""
        maps = {value for value in node.inputs if value is not None and _is_map(value)}
        if not _is_elementwise(node) or self._not_joined.isdisjoint(maps):
            return False
        return maps <= self._halves.keys() or _leads_to_convolution(node)

    def _replace(self, node: ir.Node, halves: _Halves) -> None:
        result = node.outputs[0]
        self._halves[result] = halves
        self._not_joined.add(result)
        if result.is_graph_output() or any(reader.graph is not self._graph for reader in readers_of(node)):
            self._join(result, before=node)

    def _halves_of(self, value: ir.Value, before: ir.Node) -> _Halves:
        if value not in self._halves:
            rows, columns = _size(value)
            shape = int64_initializer(self._graph, f"{value.name}.pairs_of_rows", [0, 0, rows // 2, 2 * columns])
            node = ir.node("Reshape", [value, shape], name=f"{before.name}_Pairs")
            pairs = insert(node, before=before, graph=self._graph, like=value, shape=_pairs_shape(value))
            sizes, name = [columns, columns], f"{before.name}_Rows"
            even, odd = insert_split(pairs, sizes, axis=3, before=before, graph=self._graph, name=name)
            self._halves[value] = (even, odd)
        return self._halves[value]

    def _join(self, value: ir.Value, *, before: ir.Node) -> None:
        """Insert the whole map before a node, for all that read it; under its name, by which faults are explained."""
        producer = value.producer()
        assert producer is not None
        add = functools.partial(insert, before=before, graph=self._graph, like=value)
        node = ir.node("Concat", list(self._halves[value]), {"axis": 3}, name=f"{producer.name}_Joined")
        pairs = add(node, shape=_pairs_shape(value))
        shape = int64_initializer(self._graph, f"{value.name}.rows", [0, 0, *_size(value)])
        whole = add(ir.node("Reshape", [pairs, shape], name=f"{producer.name}_Whole"), shape=value.shape)
        self._halves[whole] = self._halves[value]
        self._not_joined.discard(value)
        if not value.is_graph_output():  # whose name `replace_value` keeps
            value.name, whole.name = f"{value.name}_by_halves", value.name
        replace_value(value, whole)

    def _copy(self, node: ir.Node, half: int, suffix: str) -> ir.Value:
        """Insert an elementwise node of a half of the rows."""
        inputs = [
            self._halves_of(value, node)[half] if value is not None and _is_map(value) else value
            for value in node.inputs
        ]
        attributes = list(node.attributes.values())
        copy = ir.Node("", node.op_type, inputs, attributes=attributes, name=f"{node.name}_{suffix}")
        result = node.outputs[0]
        return insert(copy, before=node, graph=self._graph, like=result, shape=_half_shape(result))


def _convolve(node: ir.Node, even: ir.Value, odd: ir.Value, graph: ir.Graph) -> _Halves:
    """Insert the products of rows before a convolution, each named `<convolution>_<step>`; return its halves."""
    source, result, weight = required_input(node), node.outputs[0], constant(node.inputs[1])
    assert weight is not None
    before_rows, after_rows = _half_shape(source), _half_shape(result)
    g0, g1, g2 = (weight[:, :, row : row + 1].astype(np.float64) for row in range(3))
    _, left, _, right = node.attributes.get_ints("pads", [])
    bias = [value for value in node.inputs[2:] if value is not None]
    add = functools.partial(insert, before=node, graph=graph, like=result)

    def elementwise(op_type: str, name: str, first: ir.Value, second: ir.Value, shape: ir.Shape) -> ir.Value:
        return add(ir.node(op_type, [first, second], name=f"{node.name}_{name}"), shape=shape)

    def neighbors(name: str, value: ir.Value, *, first: bool) -> ir.Value:
        """Subtract from each row the next one, from a row of zeros in front of the first or behind the last."""
        channels = weight.shape[1]
        kernel = np.tile(np.asarray([[1], [-1]], weight.dtype), (channels, 1, 1, 1))
        factor = initializer(graph, f"{node.name}.{name}", kernel)
        pads = [1, 0, 0, 0] if first else [0, 0, 1, 0]
        attributes: dict[str, int | list[int]] = {"group": channels, "kernel_shape": [2, 1], "pads": pads}
        made = ir.node("Conv", [value, factor], attributes, name=f"{node.name}_{name}")
        made.metadata_props[WORK] = "0"
        return add(made, shape=before_rows)

    def product(name: str, value: ir.Value, kernel: Array, *bias: ir.Value) -> ir.Value:
        factor = initializer(graph, f"{node.name}.{name}", kernel.astype(weight.dtype))
        attributes = {"kernel_shape": [1, weight.shape[3]], "pads": [0, left, 0, right]}
        made = ir.node("Conv", [value, factor, *bias], attributes, name=f"{node.name}_{name}")
        made.metadata_props[WORK] = "1.5"
        return add(made, shape=after_rows)

    m0 = product("m0", neighbors("d0-d2", odd, first=True), g0)
    m1 = product("m1", elementwise("Add", "d1+d2", even, odd, before_rows), (g0 + g1 + g2) / 2, *bias)
    m2 = product("m2", elementwise("Sub", "d2-d1", odd, even, before_rows), (g0 - g1 + g2) / 2)
    m3 = product("m3", neighbors("d1-d3", even, first=False), -g2)  # negative: a runtime fuses an Add
    upper = elementwise("Add", "m1+m2", m1, m2, after_rows)
    lower = elementwise("Sub", "m1-m2", m1, m2, after_rows)
    return elementwise("Add", "even", upper, m0, after_rows), elementwise("Add", "odd", lower, m3, after_rows)


def _size(value: ir.Value) -> tuple[int, int]:
    """Return the rows and columns of a map."""
    rows, columns = (value.shape or ())[2:]
    assert isinstance(rows, int) and isinstance(columns, int)
    return rows, columns


def _half_shape(value: ir.Value) -> ir.Shape:
    """Return the shape of half of the rows of a map."""
    rows, columns = _size(value)
    return ir.Shape([*(value.shape or ())[:2], rows // 2, columns])


def _pairs_shape(value: ir.Value) -> ir.Shape:
    """Return the shape of a map with two rows side by side."""
    rows, columns = _size(value)
    return ir.Shape([*(value.shape or ())[:2], rows // 2, 2 * columns])


def _is_dense_3x3(node: ir.Node) -> bool:
    """Whether a node is a convolution with three rows of weights that this pass replaces."""
    if node.op_type != "Conv" or node.domain:
        return False
    weight, result = constant(node.inputs[1]), node.outputs[0]
    if weight is None or weight.ndim != 4 or weight.dtype != np.float32 or weight.shape[2] != 3:
        return False
    attributes = node.attributes
    ones = [*attributes.get_ints("strides", [1]), *attributes.get_ints("dilations", [1])]
    pads = list(attributes.get_ints("pads", [0, 0, 0, 0]))
    is_plain = set(ones) == {1} and attributes.get_int("group", 1) == 1 and pads[0] == pads[2] == 1
    return is_plain and all(map(_has_pairs_of_rows, (node.inputs[0], result))) and _saves_time(weight, result)


def _saves_time(weight: Array, result: ir.Value) -> bool:
    """Whether the products that a convolution saves take longer than the sums of rows."""
    outputs, inputs, *_ = map(int, weight.shape)
    elements = math.prod(_size(result))
    if outputs < _MIN_OUTPUTS or inputs < _MIN_INPUTS or weight.size * elements < _MIN_MACS:
        return False
    largest = max(outputs, inputs) * elements * weight.itemsize
    return largest <= _MAX_CACHED_BYTES or min(outputs, inputs) >= _MIN_CHANNELS_UNCACHED


def _has_pairs_of_rows(value: ir.Value | None) -> bool:
    """Whether a value is a map (N, C, H, W) with an even number of rows, at least 4, of a known length."""
    shape = value.shape if value is not None else None
    if shape is None or len(shape) != 4:
        return False
    rows, columns = shape[2], shape[3]
    return isinstance(rows, int) and isinstance(columns, int) and rows >= 4 and rows % 2 == 0


def _is_map(value: ir.Value | None) -> bool:
    """Whether a value has more than one row, so that its halves differ; constants of one row do not."""
    shape = value.shape if value is not None else None
    return shape is not None and len(shape) > 1 and shape[-2] != 1


def _is_elementwise(node: ir.Node) -> bool:
    """Whether a node computes each element of a map from those at its place, and numbers for whole channels."""
    if node.op_type not in _ELEMENTWISE or node.domain or len(node.outputs) != 1:
        return False
    if any(value is not None and value.shape is None for value in node.inputs):
        return False
    size = (node.outputs[0].shape or ())[2:]
    maps = [value.shape for value in node.inputs if value is not None and value.shape is not None and _is_map(value)]
    return all(list(shape[2:]) == list(size) for shape in maps)


def _leads_to_convolution(node: ir.Node, depth: int = _MAX_DEPTH) -> bool:
    """Whether elementwise operators lead from a node to a convolution that this pass replaces."""
    readers = readers_of(node)
    if any(_is_dense_3x3(reader) for reader in readers):
        return True
    return depth > 0 and any(_leads_to_convolution(each, depth - 1) for each in readers if _is_elementwise(each))
