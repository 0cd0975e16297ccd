"""Write circular padding (Pad with mode=wrap) with Slice and Concat, for opsets before 19.

Along each axis, Pad(x) = Concat(x[-before:], x, x[:after]).
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    insert,
    insert_slice,
    remove_unused,
    replace_value,
    required_input,
    static_size,
)

_END = 2**63 - 1


def decompose_wrap_pad(model: ir.Model) -> None:
    """Replace each circular Pad whose amounts are constant, not negative, and at most the length of the axis."""
    for node in list(model.graph):
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "wrap":
            amounts = _amounts(node)
            if amounts is not None and all(_is_within(node, axis, pair) for axis, pair in amounts.items()):
                _decompose(node, amounts, model.graph)
    remove_unused(model)


def _amounts(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Return the padding before and after each axis; None if it is not constant."""
    pads = constant(node.inputs[1])
    if pads is None:
        return None
    axes = range(len(pads) // 2)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        given = constant(node.inputs[3])
        if given is None:
            return None
        axes = given.tolist()
    half = len(pads) // 2
    return {int(axis): (int(pads[index]), int(pads[half + index])) for index, axis in enumerate(axes)}


def _is_within(node: ir.Node, axis: int, amounts: tuple[int, int]) -> bool:
    """Whether an axis is at least as long as its padding, as PyTorch requires; an unknown length is taken to be."""
    size = static_size(node.inputs[0], axis)
    return min(amounts) >= 0 and (size is None or max(amounts) <= size)


def _decompose(node: ir.Node, amounts: dict[int, tuple[int, int]], graph: ir.Graph) -> None:
    value = required_input(node)
    for axis, (before, after) in amounts.items():
        parts, cut = [value], partial(insert_slice, value, before=node, graph=graph)
        if before:
            parts.insert(0, cut({axis: (-before, _END)}, name=f"{node.name}_axis_{axis}_before"))
        if after:
            parts.append(cut({axis: (0, after)}, name=f"{node.name}_axis_{axis}_after"))
        if len(parts) > 1:
            value = _insert(ir.node("Concat", parts, {"axis": axis}, name=f"{node.name}_axis_{axis}"), node, graph)
    if value is node.inputs[0]:
        value = _insert(ir.node("Identity", [value], name=node.name), node, graph)
    replace_value(node.outputs[0], value)


def _insert(new: ir.Node, before: ir.Node, graph: ir.Graph) -> ir.Value:
    """Insert a node whose output has the type of the Pad's output and no shape."""
    return insert(new, before=before, graph=graph, like=before.outputs[0], shape=None)
