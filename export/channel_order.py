"""Reorder the channels of a value, and with them the weights of everything that reads them.

new[:, i] = old[:, order[i]]. Elementwise operators take channels in any order, depthwise convolutions with their
kernels in that order, and a convolution over all channels sums them in that order. Values of one number per channel
that an elementwise operator combines with them are reordered too. Nothing changes unless all readers can follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    initializer,
    insert,
    int64_initializer,
    only_consumer,
    replace_value,
)

Order = NDArray[np.int64]  # (C,)

_UNARY = frozenset({"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Relu"})
_UNARY |= {"Sigmoid", "Tanh"}
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})


def reorder_readers(value: ir.Value, order: Order, graph: ir.Graph) -> bool:
    """Let all readers of `value` (N, C, H, W) take its channels in a new order; False if one cannot."""
    plan = _Plan(order, graph)
    if not plan.follow(value):
        return False
    for edit in plan.edits:
        edit()
    return True


@dataclass
class _Plan:
    """The edits for one order, collected before any is made."""

    order: Order
    graph: ir.Graph
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
        count, group = len(self.order), node.attributes.get_int("group", 1)
        weight = constant(node.inputs[1])
        if group == 1:
            self.edits.append(lambda: self._take(node, 1, 1))
            return True
        if weight is None or group != count or weight.shape[0] != count:
            return False
        self.edits += [partial(self._take, node, index, 0) for index in range(1, len(node.inputs))]
        pending.append(node.outputs[0])
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
        self.edits.append(lambda: self._gather(node, index))
        return True

    def _take(self, node: ir.Node, index: int, axis: int) -> None:
        array = constant(node.inputs[index])
        if array is not None:
            name = f"{node.name}.{index}"
            node.replace_input_with(index, initializer(self.graph, name, np.take(array, self.order, axis)))

    def _gather(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        assert value is not None
        order = int64_initializer(self.graph, f"{node.name}.order", self.order.tolist())
        gather = ir.node("Gather", [value, order], {"axis": 1}, name=f"{node.name}_order_{index}")
        node.replace_input_with(index, insert(gather, before=node, graph=self.graph, like=value, shape=value.shape))


def _restored(reshape: ir.Node, order: Order) -> ir.Value | None:
    """Return the output of the channel shuffle that begins at this Reshape, if its order is `order`."""
    transpose = only_consumer(reshape.outputs[0]) if reshape.op_type == "Reshape" else None
    last = only_consumer(transpose.outputs[0]) if transpose is not None else None
    source, split = reshape.inputs[0], reshape.outputs[0].shape
    if transpose is None or last is None or last.op_type != "Reshape" or source is None or split is None:
        return None
    if transpose.op_type != "Transpose" or list(transpose.attributes.get_ints("perm", [])) != [0, 2, 1, 3]:
        return None
    groups, size = split[1], split[2]
    if not isinstance(groups, int) or not isinstance(size, int) or groups * size != len(order):
        return None
    shuffled = np.arange(groups * size).reshape(groups, size).T.reshape(-1)
    whole = source.shape is not None and last.outputs[0].shape is not None
    same = whole and list(source.shape or ())[1:] == list(last.outputs[0].shape or ())[1:]
    return last.outputs[0] if same and np.array_equal(shuffled, order) else None
