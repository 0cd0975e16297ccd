"""Move Gather in front of Concat if their axes differ.

Gather(Concat(a, b)) = Concat(Gather(a), Gather(b)), which copies only the elements that are read.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import only_consumer, remove_unused, replace_value


def push_gather_through_concat(model: ir.Model) -> None:
    """Swap each Concat with a Gather that is its only consumer."""
    for node in list(model.graph):
        if node.op_type == "Concat":
            _swap(node, model.graph)
    remove_unused(model)


def _swap(concat: ir.Node, graph: ir.Graph) -> None:
    concatenated = concat.outputs[0]
    gather = only_consumer(concatenated)
    if gather is None or gather.op_type != "Gather" or gather.inputs[0] is not concatenated:
        return
    indices = gather.inputs[1]
    if concatenated.shape is None or indices is None or indices.shape is None:
        return
    rank = len(concatenated.shape)
    concat_axis, gather_axis = concat.attributes.get_int("axis") % rank, gather.attributes.get_int("axis", 0) % rank
    if concat_axis == gather_axis:
        return
    parts = [_gather_from(part, gather, gather_axis, number) for number, part in enumerate(concat.inputs)]
    # Gather replaces its axis by the axes of its indices.
    axis = concat_axis if concat_axis < gather_axis else concat_axis - 1 + len(indices.shape)
    new_concat = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": axis}, name=concat.name)
    for new in (*parts, new_concat):
        graph.insert_before(gather, new)
    replace_value(gather.outputs[0], new_concat.outputs[0])


def _gather_from(part: ir.Value | None, gather: ir.Node, axis: int, number: int) -> ir.Node:
    """Create the Gather that reads one input of the Concat."""
    indices = gather.inputs[1]
    new = ir.node("Gather", [part, indices], {"axis": axis}, name=f"{gather.name}_part_{number}")
    if part is not None and part.shape is not None and indices is not None and indices.shape is not None:
        new.outputs[0].shape = ir.Shape([*part.shape[:axis], *indices.shape, *part.shape[axis + 1 :]])
        new.outputs[0].type = part.type
    return new
