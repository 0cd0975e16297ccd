"""Write Mish with basic operators, for opset 17: x tanh(softplus(x))."""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import NodeInserter, remove_unused, replace_value


def decompose_mish(model: ir.Model) -> None:
    """Replace each Mish."""
    for node in list(model.graph):
        if node.op_type == "Mish" and not node.domain:
            insert = NodeInserter(node, model.graph)
            gate = insert("Tanh", insert("Softplus", node.inputs[0]))
            replace_value(node.outputs[0], insert("Mul", node.inputs[0], gate))
    remove_unused(model)
