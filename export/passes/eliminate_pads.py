"""Remove Pad nodes that add nothing, as torch.nn.Unfold without padding exports one."""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, remove_unused


def eliminate_pads(model: ir.Model) -> None:
    """Replace the output of each Pad whose amounts are all 0 by its input."""
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Pad" else None
        if source is None or node.outputs[0].is_graph_output():  # a graph output needs a producer
            continue
        pads = constant(node.inputs[1])
        if pads is not None and not pads.any():
            node.outputs[0].replace_all_uses_with(source)
    remove_unused(model)
