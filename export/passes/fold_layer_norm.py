"""Fold the scale and the bias of a LayerNormalization into the linear layer that reads it.

    (scale n(x) + bias) W + c = n(x) (scale W) + (bias W + c)

where n(x) has mean 0 and variance 1 over the channels, and scale multiplies the rows of W. It also holds if the tokens
are only rearranged between the norm and the layer, as in the windows of Swin. OpenVINO normalizes in one kernel, and
scales in another one that reads and writes all tokens again.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import initializer, insert, only_consumer, remove_unused, replace_value, static_size
from edgevit.export.layer_norm import layer_norm_at
from edgevit.export.linear import Linear, linear_at
from edgevit.types import Array


def fold_layer_norm(model: ir.Model) -> None:
    """Move the scale and bias of each norm into the linear layer that alone reads it."""
    for node in list(model.graph):
        norm = layer_norm_at(node)
        if norm is None or (np.all(norm.scale == 1) and not np.any(norm.bias_or_zeros)):
            continue
        layer = _layer_behind(norm.output, len(norm.scale))
        if layer is None:
            continue
        weight = layer.weight.astype(np.float64)  # of sums over all channels
        _set_weights(layer, norm.scale[:, None] * weight, norm.bias_or_zeros @ weight, model.graph)
        zeros = None if norm.bias is None else np.zeros_like(norm.bias)
        norm.replace_parameters(np.ones_like(norm.scale), zeros, model.graph)
    remove_unused(model)


def _layer_behind(value: ir.Value, channels: int) -> Linear | None:
    """Return the linear layer that alone reads all channels of a value, as it is or with its tokens rearranged."""
    while (reader := only_consumer(value)) is not None:
        layer = linear_at(reader)
        if layer is not None:
            reads_channels = layer.source is value and layer.weight.shape[0] == channels
            return layer if reads_channels and _can_have_bias(layer) else None
        if reader.inputs[0] is not value or not _keeps_channels(reader, channels):
            return None
        value = reader.outputs[0]
    return None


def _can_have_bias(layer: Linear) -> bool:
    return layer.bias is not None or layer.product.op_type == "MatMul"


def _keeps_channels(node: ir.Node, channels: int) -> bool:
    """Whether a node rearranges tokens whose numbers stay in their places modulo the number of channels."""
    if node.domain:
        return False
    if node.op_type == "Reshape":
        return True
    if node.op_type != "Transpose":
        return False
    last = static_size(node.outputs[0], -1)
    order = node.attributes.get_ints("perm", []) or []
    return last is not None and last % channels == 0 and list(order)[-1:] == [len(order) - 1]


def _set_weights(layer: Linear, weight: Array, added: Array, graph: ir.Graph) -> None:
    """Set the weight, and add to the bias, or behind a product that has none."""
    layer.replace_weights(weight, None if layer.bias is None else layer.bias + added, graph)
    if layer.bias is None and np.any(added):
        _add_behind(layer.product, added.astype(layer.weight.dtype), graph)


def _add_behind(product: ir.Node, bias: Array, graph: ir.Graph) -> None:
    """Replace a product by the sum of one and the bias."""
    old = product.outputs[0]
    add = functools.partial(insert, before=product, graph=graph, like=old, shape=old.shape)
    value = add(ir.node("MatMul", product.inputs, name=product.name))
    term = initializer(graph, f"{product.name}.bias", bias)
    replace_value(old, add(ir.node("Add", [value, term], name=f"{product.name}_Add")))
