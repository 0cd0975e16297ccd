"""Fold a constant factor of each channel into the layer before it, as LayerScale in ConvNeXt, CaiT, DeiT III and BEiT.

c (x W + b) = x (W c) + c b, where c scales the outputs of a linear layer or a convolution.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    initializer,
    only_consumer,
    remove_unused,
    replace_value,
)
from edgevit.export.linear import linear_producing
from edgevit.export.tensor_parts import ChannelScale, mark_channel_scale
from edgevit.types import Array

# Factors within these limits cost no accuracy in fp16, where weights below 2^-14 have fewer bits.
_SMALLEST, _LARGEST = 2**-10, 16


def fold_layer_scale(model: ir.Model, *, smallest: float = _SMALLEST, largest: float = _LARGEST) -> None:
    """Remove each multiplication of a layer's outputs by constants, all of them within the limits."""
    for node in list(model.graph):
        if node.op_type != "Mul" or node.domain:
            continue
        for value, factor in (tuple(node.inputs), tuple(reversed(node.inputs))):
            scale = constant(factor)
            if value is None or scale is None or only_consumer(value) is not node:
                continue
            magnitude = np.abs(scale)
            if magnitude.min() >= smallest and magnitude.max() <= largest and _fold(value, scale, model.graph):
                replace_value(node.outputs[0], value)
                model.graph.remove(node, safe=True)  # or the value would have two readers
                break
    remove_unused(model)


def _fold(value: ir.Value, scale: Array, graph: ir.Graph) -> bool:
    """Scale the outputs of the layer that computes a value; False without one, or for factors of other axes."""
    layer = linear_producing(value)
    if layer is not None:
        if not _is_of_axis(scale, value, -1):
            return False
        factors = scale.reshape(-1)
        layer.replace_weights(layer.weight * factors, None if layer.bias is None else layer.bias * factors, graph)
        mark_channel_scale(value, ChannelScale(-1, factors))
        return True
    conv = value.producer()
    if conv is None or conv.op_type != "Conv" or conv.domain or not has_constant_weights(conv):
        return False
    if not _is_of_axis(scale, value, 1):
        return False
    for index in range(1, len(conv.inputs)):
        array = constant(conv.inputs[index])
        if array is not None:
            factors = scale.reshape(-1, *[1] * (array.ndim - 1))
            conv.replace_input_with(index, initializer(graph, f"{conv.name}.{index}", array * factors))
    mark_channel_scale(value, ChannelScale(1, scale.reshape(-1)))
    return True


def _is_of_axis(scale: Array, value: ir.Value, axis: int) -> bool:
    """Whether the factors are one for each entry of an axis of the value, which they leave in its shape."""
    shape = value.shape
    if shape is None or scale.ndim > len(shape):
        return False
    wanted = [1] * len(shape)
    wanted[axis] = scale.size
    return shape[axis] == scale.size and list(scale.shape) == wanted[len(shape) - scale.ndim :]
