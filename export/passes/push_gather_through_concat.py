"""What is picked along one axis of tensors that were joined along another is picked before they are joined.

Gather(Concat(a, b)) = Concat(Gather(a), Gather(b)): the same elements, and only those that are read get moved.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import only_consumer, remove_unused, replace_value


def push_gather_through_concat(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type == "Concat":
            _swap(node, model.graph)
    remove_unused(model)


def _swap(concat: ir.Node, graph: ir.Graph) -> None:
    joined = concat.outputs[0]
    gather = only_consumer(joined)
    if gather is None or gather.op_type != "Gather" or gather.inputs[0] is not joined:
        return
    indices = gather.inputs[1]
    if joined.shape is None or indices is None or indices.shape is None:
        return
    rank = len(joined.shape)
    across, along = concat.attributes.get_int("axis") % rank, gather.attributes.get_int("axis", 0) % rank
    if across == along:
        return
    parts = [_gathered(part, gather, along, number) for number, part in enumerate(concat.inputs)]
    axis = across if across < along else across - 1 + len(indices.shape)  # the indices' axes stand in place of one
    again = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": axis}, name=concat.name)
    for new in (*parts, again):
        graph.insert_before(gather, new)
    replace_value(gather.outputs[0], again.outputs[0])


def _gathered(part: ir.Value | None, gather: ir.Node, axis: int, number: int) -> ir.Node:
    indices = gather.inputs[1]
    new = ir.node("Gather", [part, indices], {"axis": axis}, name=f"{gather.name}_part_{number}")
    if part is not None and part.shape is not None and indices is not None and indices.shape is not None:
        new.outputs[0].shape = ir.Shape([*part.shape[:axis], *indices.shape, *part.shape[axis + 1 :]])
        new.outputs[0].type = part.type
    return new
