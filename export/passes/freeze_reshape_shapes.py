"""A Reshape to a computed shape becomes one to a constant: -1 stands for the one dimension that is not known.

With a dynamic batch PyTorch computes every target shape from the input's (Shape, Squeeze, Concat), although all but
one of its numbers are known beforehand. Shape arithmetic in a graph keeps engines from fusing across it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, int64_initializer, remove_unused


def freeze_reshape_shapes(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "Reshape" and constant(node.inputs[1]) is None:
            shape = node.outputs[0].shape
            known = [dim if isinstance(dim, int) else -1 for dim in shape] if shape is not None else [-1, -1]
            # A 0 would mean "as the input has it"; an empty tensor is nobody's feature map.
            if known.count(-1) <= 1 and 0 not in known:
                node.replace_input_with(1, int64_initializer(model.graph, f"{node.name}.shape", known))
    remove_unused(model)
