"""Reorder the channels of a value, and with them the weights of everything that reads them.

new[:, i] = old[:, order[i]]. Elementwise operators take channels in any order, depthwise convolutions with their
kernels in that order, and a convolution over all channels sums them in that order. Values of one number per channel
that an elementwise operator combines with them are reordered too, in the weights of the linear layer that computes them
if there is one. Nothing changes unless all readers can follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.grouped_convolution import added_macs, group_count, merge_kernels
from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    initializer,
    insert,
    int64_initializer,
    only_consumer,
    replace_value,
    required_input,
    static_size,
)

Order = NDArray[np.int64]  # (C,)

_UNARY = frozenset({"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Relu"})
_UNARY |= {"Sigmoid", "Tanh"}
_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})


@dataclass(frozen=True, slots=True)
class Shuffle:
    """The permutation output[c] = source[order[c]] of the channels of `source`."""

    source: ir.Value
    order: Order
    output: ir.Value


def reorder_readers(value: ir.Value, order: Order, graph: ir.Graph, *, max_macs: float = 0) -> bool:
    """Let all readers of `value` (N, C, H, W) take its channels in a new order; False if one cannot.

    Grouped convolutions among them become dense if that adds at most `max_macs` multiply-adds.
    """
    plan = _Plan(order, graph, max_macs)
    if not plan.follow(value):
        return False
    for edit in plan.edits:
        edit()
    return True


@dataclass(frozen=True, slots=True)
class _Rows:
    """Outputs of a Gemm, from `start` on."""

    layer: ir.Node
    start: int


@dataclass
class _Plan:
    """The edits for one order, collected before any is made."""

    order: Order
    graph: ir.Graph
    max_macs: float  # multiply-adds that may still be added
    edits: list[Callable[[], None]] = field(default_factory=list)
    _values: set[ir.Value] = field(default_factory=set)  # in the new order

    def follow(self, start: ir.Value) -> bool:
        """Plan the edits of all readers, from `start` on."""
        pending, joins = [start], set()
        while pending:
            value = pending.pop()
            if value in self._values:
                continue
            self._values.add(value)
            if value.is_graph_output():
                return False
            for use in value.uses():
                if use.node.op_type in _BINARY:
                    joins.add(use.node)
                    pending.append(use.node.outputs[0])
                elif not self._reader(use.node, use.idx, value, pending):
                    return False
        return all(self._operand(node, other) for node in joins for other in set(node.inputs) - self._values)

    def _reader(self, node: ir.Node, index: int, value: ir.Value, pending: list[ir.Value]) -> bool:
        """Plan the edits of a reader other than a binary operator."""
        if index != 0 or node.domain:
            return False
        if node.op_type in _UNARY:
            pending.append(node.outputs[0])
            return True
        if node.op_type == "Conv" and has_constant_weights(node):
            return self._convolution(node, pending)
        restored = _restored(node, self.order)
        if restored is not None:
            self.edits.append(lambda: replace_value(restored, value))
        return restored is not None

    def _convolution(self, node: ir.Node, pending: list[ir.Value]) -> bool:
        count, groups = len(self.order), group_count(node)
        weight = constant(node.inputs[1])
        if weight is not None and groups == count == weight.shape[0]:
            self.edits += [partial(self._take, node, index, 0) for index in range(1, len(node.inputs))]
            pending.append(node.outputs[0])
            return True
        if groups > 1:
            self.max_macs -= added_macs(node)
            if self.max_macs < 0:
                return False
            self.edits.append(lambda: merge_kernels(node, groups, self.graph))
        self.edits.append(lambda: self._take(node, 1, 1))
        return True

    def _operand(self, node: ir.Node, other: ir.Value | None) -> bool:
        """Plan to reorder the other operand of a binary operator: a constant, or one number per channel."""
        array, count = constant(other), len(self.order)
        index = list(node.inputs).index(other)
        if array is not None:
            if array.size == 1:
                return True
            if array.ndim not in (3, 4) or array.shape[-3] != count:
                return False
            self.edits.append(lambda: self._take(node, index, -3))
            return True
        if other is None or other.shape is None or list(other.shape)[1:] != [count, 1, 1]:
            return False
        rows = _rows_of(other)
        self.edits.append(lambda: self._gather(node, index) if rows is None else self._take_rows(rows))
        return True

    def _take(self, node: ir.Node, index: int, axis: int) -> None:
        array = constant(node.inputs[index])
        if array is not None:
            name = f"{node.name}.{index}"
            node.replace_input_with(index, initializer(self.graph, name, np.take(array, self.order, axis)))

    def _take_rows(self, rows: _Rows) -> None:
        """Reorder the outputs of a linear layer that become the numbers per channel."""
        stop = rows.start + len(self.order)
        for index, axis in ((1, 0 if rows.layer.attributes.get_int("transB", 0) else 1), (2, -1)):
            array = constant(rows.layer.inputs[index]) if index < len(rows.layer.inputs) else None
            if array is not None and array.size > 1:
                order = np.arange(array.shape[axis])
                order[rows.start : stop] = order[rows.start : stop][self.order]
                name = f"{rows.layer.name}.{'weight' if index == 1 else 'bias'}"
                rows.layer.replace_input_with(index, initializer(self.graph, name, np.take(array, order, axis)))

    def _gather(self, node: ir.Node, index: int) -> None:
        value = required_input(node, index)
        order = int64_initializer(self.graph, f"{node.name}.order", self.order.tolist())
        gather = ir.node("Gather", [value, order], {"axis": 1}, name=f"{node.name}_order_{index}")
        node.replace_input_with(index, insert(gather, before=node, graph=self.graph, like=value, shape=value.shape))


def _rows_of(value: ir.Value) -> _Rows | None:
    """Return the outputs of a Gemm that become `value` (N, C, 1, 1) and nothing else; None if there are none."""
    start = 0
    while only_consumer(value) is not None and (node := value.producer()) is not None and not node.domain:
        if node.op_type == "Gemm":
            return _Rows(node, start) if has_constant_weights(node) else None
        source = node.inputs[0] if node.inputs else None
        offset = _offset(node, source, value)
        if source is None or offset is None:
            return None
        start, value = start + offset, source
    return None


def _offset(node: ir.Node, source: ir.Value | None, output: ir.Value) -> int | None:
    """Return the channel of a node's first input with which `output` begins; None if the node moves or mixes them."""
    if source is None or not _is_per_channel(source) or not _is_per_channel(output):
        return None
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) == 1:
        return sum(static_size(part, 1) or 0 for part in node.outputs[: node.outputs.index(output)])
    keeps_count = static_size(source, 1) == static_size(output, 1)
    return 0 if node.op_type in _UNARY or (node.op_type in _RESHAPING and keeps_count) else None


def _is_per_channel(value: ir.Value) -> bool:
    """Whether a value has the shape (N, C), (N, C, 1) or (N, C, 1, 1)."""
    shape = list(value.shape or ())
    return len(shape) > 1 and isinstance(shape[1], int) and all(dim == 1 for dim in shape[2:])


def map_shuffle(reshape: ir.Node) -> Shuffle | None:
    """Return the channel shuffle of a map (N, C, H, W) that begins at this Reshape; None if there is none."""
    transpose = only_consumer(reshape.outputs[0]) if reshape.op_type == "Reshape" else None
    last = only_consumer(transpose.outputs[0]) if transpose is not None else None
    if transpose is None or last is None or (transpose.op_type, last.op_type) != ("Transpose", "Reshape"):
        return None
    source, split = reshape.inputs[0], reshape.outputs[0].shape
    if source is None or split is None or list(transpose.attributes.get_ints("perm", [])) != [0, 2, 1, 3]:
        return None
    whole, back = list(source.shape or ()), list(last.outputs[0].shape or ())
    groups, size = split[1], split[2]
    if len(whole) != 4 or whole[1:] != back[1:] or not isinstance(groups, int) or not isinstance(size, int):
        return None
    if groups * size != whole[1]:
        return None
    return Shuffle(source, np.arange(groups * size).reshape(groups, size).T.reshape(-1), last.outputs[0])


def _restored(reshape: ir.Node, order: Order) -> ir.Value | None:
    """Return the output of the channel shuffle that begins at this Reshape, if its order is `order`."""
    shuffle = map_shuffle(reshape)
    return shuffle.output if shuffle is not None and np.array_equal(shuffle.order, order) else None
