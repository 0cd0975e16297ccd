"""Compute a softmax over an axis other than the last with reductions and elementwise operators.

Used for ONNX Runtime, whose Softmax transposes its input and output unless the axis is the last, and then handles rows
of few numbers one by one. Mobile-Former's pixels attend to 3 to 6 tokens, axis 2 of (N, heads, tokens, pixels). Over
whole rows of pixels at a time:

    e = exp(x - max x), softmax(x) = e (1 / sum e)
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    copy_shape_and_type,
    int64_initializer,
    is_over_last_axis,
    remove_unused,
    replace_value,
    static_size,
)

_MIN_ROW = 64  # numbers behind the axis; shorter rows are no faster


def decompose_softmax(model: ir.Model) -> None:
    """Replace each float32 Softmax whose axis has at least _MIN_ROW numbers behind it."""
    for node in list(model.graph):
        if _is_over_long_rows(node):
            replace_value(node.outputs[0], _weights(node, model.graph))
    remove_unused(model)


def _is_over_long_rows(node: ir.Node) -> bool:
    if node.op_type != "Softmax" or node.domain or node.outputs[0].shape is None or is_over_last_axis(node):
        return False
    rank, output = len(node.outputs[0].shape or ()), node.outputs[0]
    behind = [static_size(output, axis) for axis in range(_axis(node) + 1, rank)]
    sizes = [size for size in behind if size is not None]
    return len(sizes) == len(behind) and math.prod(sizes) >= _MIN_ROW and output.dtype == ir.DataType.FLOAT


def _axis(node: ir.Node) -> int:
    rank = len(node.outputs[0].shape or ())
    return (node.attributes.get_int("axis", -1) or 0) % rank


def _weights(node: ir.Node, graph: ir.Graph) -> ir.Value:
    """Insert the steps before a softmax, each named `<softmax>_<operator>`; return its output."""
    x, axis = node.inputs[0], _axis(node)
    axes = int64_initializer(graph, f"{node.name}.axes", [axis])

    def step(op_type: str, *inputs: ir.Value | None, reduced: bool = False) -> ir.Value:
        made = ir.node(op_type, inputs, name=f"{node.name}_{op_type}")
        graph.insert_before(node, made)
        copy_shape_and_type(made.outputs[0], node.outputs[0])
        if reduced:
            dims = list(node.outputs[0].shape or ())
            made.outputs[0].shape = ir.Shape([*dims[:axis], 1, *dims[axis + 1 :]])
        return made.outputs[0]

    largest = step("ReduceMax", x, axes, reduced=True)
    powers = step("Exp", step("Sub", x, largest))
    share = step("Reciprocal", step("ReduceSum", powers, axes, reduced=True), reduced=True)
    return step("Mul", powers, share)
