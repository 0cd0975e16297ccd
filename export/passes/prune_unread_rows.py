"""Compute only the row that a Gather selects, such as the class token in the last layer of a transformer.

If a Gather reads row i of a value and nothing reads the others, they need not be computed. For an operator that treats
each row on its own, f(x)[i] = f(x[i]): elementwise operators, norms and softmax along another axis, moves of elements,
and matmuls, (A B)[i] = A[i] B. So the selection moves up to where the other rows are read: in a last layer, to the
queries and the shortcut. Its attention has one query, and its MLP one token. Tensors with one row left are marked (see
`tensor_parts`), so that they can be compared with PyTorch's, which have all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    insert,
    insert_row,
    int64_initializer,
    remove_unused,
    replace_value,
    required_input,
    with_one_row,
)
from edgevit.export.tensor_parts import KeptRow, mark_kept_row

_Axes = dict[int, int]  # axis of the selected row in each input that has it, by the input's index


@dataclass(slots=True)
class Selection:
    """Nodes that compute only the selected row, the last one first, with the axis of the row in their output."""

    axes: dict[ir.Node, int] = field(default_factory=dict)
    inputs: dict[ir.Node, _Axes] = field(default_factory=dict)

    def axis_of(self, value: ir.Value, gather: ir.Node) -> int | None:
        """Return the axis along which all readers of a value select the row; None if one reads other rows too."""
        requests: set[int | None] = set()
        for use in value.uses():
            if use.node is gather and use.idx == 0:
                requests.add(_axis(gather, value))
            else:
                requests.add(self.inputs.get(use.node, {}).get(use.idx))
        return None if len(requests) != 1 or value.is_graph_output() else requests.pop()


def prune_unread_rows(model: ir.Model) -> None:
    """Move each Gather of one row up, if linear layers have fewer rows then."""
    for node in list(model.graph):
        if _gathers_a_row(node):
            selection = _select(node, model.graph)
            if any(_is_linear(each) for each in selection.axes):
                _prune(node, selection, model.graph)
    remove_unused(model)


def _gathers_a_row(node: ir.Node) -> bool:
    """Whether the node selects one row by an index of its own or in a list: (1, 1) would add an axis."""
    index = constant(node.inputs[1]) if node.op_type == "Gather" else None
    return index is not None and index.size == 1 and index.ndim <= 1


def _is_linear(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and constant(node.inputs[1]) is not None


def _axis(gather: ir.Node, source: ir.Value) -> int | None:
    return None if source.shape is None else gather.attributes.get_int("axis", 0) % len(source.shape)


def _select(gather: ir.Node, graph: ir.Graph) -> Selection:
    """Find the nodes before a Gather of which only the gathered row is read."""
    selection = Selection()
    for node in reversed(graph):
        output = node.outputs[0]
        if len(node.outputs) > 1 or not list(output.uses()) or output.shape is None:
            continue
        axis = selection.axis_of(output, gather)
        axes = None if axis is None else _input_axes(node, axis)
        if axis is not None and axes is not None:
            selection.axes[node], selection.inputs[node] = axis, axes
    return selection


def _input_axes(node: ir.Node, axis: int) -> _Axes | None:
    """Return the axis of the output's row in each input that has it; None if the rows are not independent."""
    first = node.inputs[0] if node.inputs else None
    rule = None if node.domain else _RULES.get(node.op_type)
    if rule is None or first is None or first.shape is None or node.outputs[0].shape is None:
        return None
    return rule(node, axis)


def _unary_axes(_: ir.Node, axis: int) -> _Axes | None:
    return {0: axis}


def _norm_axes(node: ir.Node, axis: int) -> _Axes | None:
    return {0: axis} if axis < node.attributes.get_int("axis", -1) % _rank(node) else None


def _softmax_axes(node: ir.Node, axis: int) -> _Axes | None:
    return {0: axis} if axis != node.attributes.get_int("axis", -1) % _rank(node) else None


def _transpose_axes(node: ir.Node, axis: int) -> _Axes | None:
    return {0: list(node.attributes.get_ints("perm", list(reversed(range(_rank(node))))))[axis]}


def _rank(node: ir.Node) -> int:
    return len(node.outputs[0].shape or ())


def _broadcast_axes(node: ir.Node, axis: int) -> _Axes | None:
    output, axes = node.outputs[0], {}
    for index, value in enumerate(node.inputs):
        if value is None or value.shape is None or output.shape is None:
            return None
        own = axis - (len(output.shape) - len(value.shape))
        if own >= 0 and value.shape[own] != 1:
            axes[index] = own
    return axes


def _matmul_axes(node: ir.Node, axis: int) -> _Axes | None:
    """Rows are the second to last axis; with a matrix on the right, all axes but the last."""
    left, right = (value.shape if value is not None else None for value in node.inputs)
    rank = len(node.outputs[0].shape or ())
    if left is None or right is None or len(left) != rank or axis == rank - 1:
        return None
    return {0: axis} if len(right) == 2 or axis == rank - 2 else None


def _reshape_axes(node: ir.Node, axis: int) -> _Axes | None:
    """The axes up to that of the row must stay: all but the first by their sizes, and hence the first too."""
    source, output, shape = node.inputs[0], node.outputs[0], constant(node.inputs[1])
    if source is None or source.shape is None or output.shape is None or shape is None:
        return None
    old, new = ([dim for dim in dims[1:] if isinstance(dim, int)] for dims in (source.shape, output.shape))
    is_known = len(old) == len(source.shape) - 1 and len(new) == len(output.shape) - 1
    same_rows = old[:axis] == new[:axis] and math.prod(old) == math.prod(new)
    return {0: axis} if is_known and same_rows and 0 < axis < len(source.shape) else None


_RULES: Mapping[str, Callable[[ir.Node, int], _Axes | None]] = {
    **dict.fromkeys(("Cast", "Erf", "Gelu", "HardSwish", "Identity", "Neg", "Relu", "Sigmoid", "Tanh"), _unary_axes),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _broadcast_axes),
    "LayerNormalization": _norm_axes,
    "MatMul": _matmul_axes,
    "Reshape": _reshape_axes,
    "Softmax": _softmax_axes,
    "Transpose": _transpose_axes,
}


def _prune(gather: ir.Node, selection: Selection, graph: ir.Graph) -> None:
    """Select the row where the nodes of the selection read other values, and drop its axis where it was gathered."""
    source = required_input(gather)
    rows: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in reversed(list(selection.axes)):
        for index, axis in selection.inputs[node].items():
            value = node.inputs[index]
            if value is not None and value.producer() not in selection.axes:
                if (value, axis) not in rows:
                    rows[value, axis] = _row(value, axis, gather, before=node, graph=graph)
                node.replace_input_with(index, rows[value, axis])
        _shorten(node, selection.axes[node], _index(gather), graph)
    indices = constant(gather.inputs[1])
    assert indices is not None
    if indices.ndim:  # keeps the axis
        replace_value(gather.outputs[0], source)
        return
    axes = int64_initializer(graph, f"{gather.name}.axes", [gather.attributes.get_int("axis", 0)])
    squeeze = ir.node("Squeeze", [source, axes], name=gather.name)
    shape = gather.outputs[0].shape
    replace_value(gather.outputs[0], insert(squeeze, before=gather, graph=graph, like=source, shape=shape))


def _index(gather: ir.Node) -> int:
    index = constant(gather.inputs[1])
    assert index is not None
    return int(index.item())


def _row(value: ir.Value, axis: int, gather: ir.Node, *, before: ir.Node, graph: ir.Graph) -> ir.Value:
    """Insert a Gather of the row that keeps its axis, in the module that reads it first."""
    row = insert_row(value, axis, _index(gather), before=before, graph=graph, name=f"{before.name}_row")
    mark_kept_row(row, KeptRow(axis, _index(gather)))
    return row


def _shorten(node: ir.Node, axis: int, index: int, graph: ir.Graph) -> None:
    """Set the length of the row's axis to 1 in the node's output."""
    output = node.outputs[0]
    assert output.shape is not None
    output.shape = with_one_row(output.shape, axis)
    mark_kept_row(output, KeptRow(axis, index))
    if node.op_type == "Reshape":
        shape = constant(node.inputs[1])
        assert shape is not None
        shorter = np.array(shape)
        shorter[axis] = 1
        node.replace_input_with(1, int64_initializer(graph, f"{node.name}.shape", shorter.tolist()))
