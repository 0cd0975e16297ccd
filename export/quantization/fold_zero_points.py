"""Fold the zero points of activations into the biases of int8 linear layers.

An activation x is about s (q - z), with q in uint8. The layer x W + b is then s q W + (b - s z sum(W)), where the sum
over the rows of W, with the integers as they are stored, is a constant. OpenVINO multiplies q by W without a zero point
in a faster kernel: with one it corrects each product at every inference.

ONNX Runtime recognizes int8 layers by a zero point that QuantizeLinear and DequantizeLinear share, so that this form is
for OpenVINO alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    initializer,
    module_of,
    remove_unused,
    replace_value,
)
from edgevit.export.linear import added_bias, int8_weight
from edgevit.types import Array


def fold_zero_points(model: ir.Model) -> None:
    """Fold the zero point of each int8 MatMul's input, in place."""
    shifted: dict[ir.Node, ir.Value] = {}
    for node in list(model.graph):
        activation, weight = _shifted_activation(node), int8_weight(node)
        if activation is not None and weight is not None:
            _add_to_bias(node, _correction(activation, weight), model.graph)
            if activation not in shifted:
                shifted[activation] = _without_zero_point(activation, model.graph)
            node.replace_input_with(0, shifted[activation])
    remove_unused(model)


def _shifted_activation(product: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of a product's first input, if it has a zero point."""
    value = product.inputs[0] if product.inputs else None
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    zero = constant(node.inputs[2])
    return node if zero is not None and zero.size == 1 and zero != 0 else None


def _correction(activation: ir.Node, weight: ir.Node) -> Array:
    """Return s z sum(W) for each output, (out,)."""
    scale, zero = (np.asarray(constant(value), np.float64) for value in activation.inputs[1:3])
    integers, scales = (np.asarray(constant(value), np.float64) for value in weight.inputs[:2])
    correction: Array = scale * zero * scales * integers.sum(0)
    return correction


def _without_zero_point(activation: ir.Node, graph: ir.Graph) -> ir.Value:
    """Return s q: a second DequantizeLinear beside that of the other readers."""
    name = activation.outputs[0].name
    none = initializer(graph, f"{name}_no_zero_point", np.zeros_like(constant(activation.inputs[2])))
    node = ir.node("DequantizeLinear", [*activation.inputs[:2], none], name=f"{activation.name}_shifted")
    copy_shape_and_type(node.outputs[0], activation.outputs[0])
    node.outputs[0].name = f"{name}_shifted"
    graph.insert_after(activation, node)
    return node.outputs[0]


def _add_to_bias(product: ir.Node, correction: Array, graph: ir.Graph) -> None:
    """Subtract the correction from the bias of a product, or add a bias if it has none."""
    output = product.outputs[0]
    bias, name = added_bias(output, len(correction)), f"{module_of(product)}/bias".lstrip("/")
    if bias is not None:
        array = (bias.array - correction).astype(bias.array.dtype)
        bias.addition.replace_input_with(bias.index, initializer(graph, name, array))
        return
    addition = ir.node("Add", [output, initializer(graph, name, -correction.astype(np.float32))], name=f"{name}_Add")
    graph.insert_after(product, addition)
    replace_value(output, addition.outputs[0])
    addition.replace_input_with(0, output)
