"""Fold the dimensions that are known of tensors with a dynamic batch.

PyTorch and its exporter read sizes from the tensors (Shape, then Gather or Slice), although only the batch is unknown.
Constant folding leaves such a Shape alone, since one of its values is dynamic. The arithmetic that depends on the known
sizes becomes constant, and the shapes of Reshape that it computes can be inferred.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.export.ir_helpers import constant, initializer, remove_unused
from edgevit.export.passes.fold_constants import fold_constants
from edgevit.types import Array


def fold_static_dims(model: ir.Model) -> None:
    """Replace each Gather or Slice of a Shape that takes known dimensions only, and fold what follows."""
    folded = False
    for node in list(model.graph):
        sizes = _taken_sizes(node)
        output = node.outputs[0]
        if sizes is not None and not output.is_graph_output():
            output.replace_all_uses_with(initializer(model.graph, f"{node.name}.sizes", sizes))
            folded = True
    if folded:
        remove_unused(model)
        fold_constants(model)
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _taken_sizes(node: ir.Node) -> Array | None:
    """Return the sizes that a Gather or Slice takes from the Shape of a tensor; None if one is unknown."""
    source = node.inputs[0].producer() if node.op_type in ("Gather", "Slice") and node.inputs[0] is not None else None
    value = source.inputs[0] if source is not None and source.op_type == "Shape" else None
    others = [constant(each) for each in node.inputs[1:]]
    if source is None or value is None or value.shape is None or any(each is None for each in others):
        return None
    places = np.arange(len(value.shape))[source.attributes.get_int("start", 0) : _end(source)]
    taken = _take(node, places, [np.asarray(each) for each in others])
    sizes = [value.shape[int(place)] for place in taken.reshape(-1)]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return np.asarray(sizes, np.int64).reshape(taken.shape)


def _end(shape: ir.Node) -> int | None:
    return shape.attributes["end"].as_int() if "end" in shape.attributes else None


def _take(node: ir.Node, places: Array, others: list[Array]) -> Array:
    if node.op_type == "Gather":
        return np.asarray(places[others[0]])
    start, end = int(others[0].item()), int(others[1].item())
    step = int(others[3].item()) if len(others) > 3 else 1
    return places[start:end:step]
