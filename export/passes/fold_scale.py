"""Fold a constant factor into the weights of a linear layer before or after it.

c (x W + b) = x (c W) + c b, also if the values are only rearranged between the layer and the factor; and
(c x) W + b = x (c W) + b, also if c x is multiplied by other values before, because the factor is common to all.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, only_consumer, remove_unused, replace_value
from edgevit.export.linear import linear_at, linear_producing
from edgevit.export.operators import REARRANGING


def fold_scale(model: ir.Model) -> None:
    """Remove each multiplication by one constant number that a linear layer can absorb."""
    for node in list(model.graph):
        found = _scaled(node)
        if found is None:
            continue
        value, factor = found
        if _fold_up(value, factor, model.graph) or _fold_down(node.outputs[0], factor, model.graph):
            replace_value(node.outputs[0], value)
    remove_unused(model)


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return the value that a node multiplies by a number, and the number; None for other nodes."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for value, factor in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = constant(factor)
        if value is not None and number is not None and number.size == 1 and _keeps_rank(value, number.ndim):
            if node.op_type == "Mul":
                return value, float(number.reshape(()))
            return (value, 1 / float(number.reshape(()))) if factor is node.inputs[1] and number else None
    return None


def _keeps_rank(value: ir.Value, rank: int) -> bool:
    return value.shape is not None and rank <= len(value.shape)


def _fold_up(value: ir.Value, factor: float, graph: ir.Graph) -> bool:
    """Fold the factor into the layer that computes the value, if nothing else reads it."""
    while only_consumer(value) is not None:
        layer = linear_producing(value)
        if layer is not None:
            bias = None if layer.bias is None else layer.bias * factor
            layer.replace_weights(layer.weight * factor, bias, graph)
            return True
        origin = value.producer()
        if origin is None or origin.op_type not in REARRANGING or origin.inputs[0] is None:
            return False
        value = origin.inputs[0]
    return False


def _fold_down(output: ir.Value, factor: float, graph: ir.Graph) -> bool:
    """Fold the factor into the layer that reads the scaled value, if nothing else does."""
    while (reader := only_consumer(output)) is not None:
        layer = linear_at(reader)
        if layer is not None and layer.source is output:
            layer.replace_weights(layer.weight * factor, layer.bias, graph)
            return True
        if reader.op_type != "Mul" and not (reader.op_type in REARRANGING and reader.inputs[0] is output):
            return False
        output = reader.outputs[0]
    return False
