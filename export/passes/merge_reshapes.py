"""Merge a Reshape into the next one: Reshape(Reshape(x, a), b) = Reshape(x, b)."""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, remove_unused


def merge_reshapes(model: ir.Model) -> None:
    """Bypass the first of two Reshapes if the second has a constant shape without 0, which copies from its input."""
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[0] is None:
            continue
        inner, shape = node.inputs[0].producer(), constant(node.inputs[1])
        if inner is not None and inner.op_type == "Reshape" and shape is not None and shape.all():
            node.replace_input_with(0, inner.inputs[0])
    remove_unused(model)
