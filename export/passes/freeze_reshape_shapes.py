"""Replace computed Reshape shapes by constants with one -1.

With a dynamic batch PyTorch computes each target shape from the input's (Shape, Squeeze, Concat), although all
dimensions but one are known. Shape arithmetic prevents engines from fusing the layers around it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, int64_initializer, remove_unused


def freeze_reshape_shapes(model: ir.Model) -> None:
    """Replace each computed target shape of which at most one dimension is unknown."""
    for node in model.graph:
        if node.op_type == "Reshape" and constant(node.inputs[1]) is None:
            shape = node.outputs[0].shape
            known = [dim if isinstance(dim, int) else -1 for dim in shape] if shape is not None else [-1, -1]
            # In a target shape 0 means "copy from the input", so shapes of empty tensors are left alone.
            if known.count(-1) <= 1 and 0 not in known:
                node.replace_input_with(1, int64_initializer(model.graph, f"{node.name}.shape", known))
    remove_unused(model)
