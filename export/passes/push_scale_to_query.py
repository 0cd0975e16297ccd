"""Scale the query instead of the attention scores: softmax(c (Q K)) = softmax((c Q) K).

The product is linear in Q, so the results are equal up to rounding. A query has one value per head channel, a row of
scores one per key, so fewer values are scaled; and in fp16 the unscaled scores are the first values to overflow. The
pass applies to a product of two activations whose scaled result is read by a Softmax, also through the Add of a mask
or a position bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    initializer,
    module_of,
    only_consumer,
    remove_unused,
)
from edgevit.types import Array

_MASKS = frozenset({"Add", "Sub", "Where"})  # may lie between the scale and the Softmax


def push_scale_to_query(model: ir.Model) -> None:
    """Move the scale of each attention."""
    for node in list(model.graph):
        if node.op_type == "MatMul":
            _move_scale(model.graph, node)
    remove_unused(model)


def _move_scale(graph: ir.Graph, product: ir.Node) -> None:
    query, key = product.inputs
    scaling = only_consumer(product.outputs[0])
    scale = _scale(scaling, product.outputs[0]) if scaling is not None else None
    if scaling is None or scale is None or query is None or constant(query) is not None or constant(key) is not None:
        return
    if not _reaches_softmax(scaling):
        return
    factor = initializer(graph, f"{query.name}_scale", scale)
    scaled = ir.node("Mul", [query, factor], name=f"{module_of(product)}/Mul_{query.name}_scaled")
    copy_shape_and_type(scaled.outputs[0], query)
    scaled.outputs[0].name = f"{query.name}_scaled"
    graph.insert_before(product, scaled)
    product.replace_input_with(0, scaled.outputs[0])
    scaling.outputs[0].replace_all_uses_with(product.outputs[0])


def _scale(node: ir.Node, scores: ir.Value) -> Array | None:
    """Return the scalar by which a Mul or Div scales the scores; None if the node does anything else."""
    if node.op_type not in ("Mul", "Div") or (node.op_type == "Div" and node.inputs[0] is not scores):
        return None
    number = constant(node.inputs[1] if node.inputs[0] is scores else node.inputs[0])
    if number is None or number.size != 1 or number.ndim > 1 or node.outputs[0].is_graph_output():
        return None
    value = number.reshape(())
    return np.asarray(value if node.op_type == "Mul" else 1 / value, number.dtype)


def _reaches_softmax(node: ir.Node) -> bool:
    reader = only_consumer(node.outputs[0])
    while reader is not None and reader.op_type in _MASKS:
        reader = only_consumer(reader.outputs[0])
    return reader is not None and reader.op_type == "Softmax"
