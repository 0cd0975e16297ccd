"""Fold a per-channel affine map into the following layer.

For a convolution without padding, W * (a x + c) = (W a) * x + (sum of W c over the inputs of each output). With padding
this would be wrong, because the padded zeros are not mapped. It also holds for a linear layer after a mean over the
pixels, because the mean of an affine map is the affine map of the mean.

Affine maps are the scale and bias of a GroupNormalization, whose normalization stays, and a BatchNormalization before a
layer, which is removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    initializer,
    is_global_mean,
    is_plain_gemm,
    only_consumer,
    remove_unused,
    replace_value,
    required_input,
)

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Affine:
    """The map y = scale x + shift of each channel."""

    scale: Vector  # (C,)
    shift: Vector  # (C,)


def fuse_affine(model: ir.Model) -> None:
    """Fold the affine map of each norm into the layer that reads it, if nothing else does."""
    for node in list(model.graph):
        affine = _affine_of(node)
        layer = _next_layer(node)
        if affine is not None and layer is not None and _can_absorb(layer, len(affine.scale)):
            _absorb(layer, affine, model.graph)
            _remove_affine(node, model.graph)
    remove_unused(model)


def _affine_of(node: ir.Node) -> Affine | None:
    """Return the affine map of a norm with constant parameters; None if it has none."""
    if node.op_type not in ("BatchNormalization", "GroupNormalization"):
        return None
    constants = [constant(value) for value in node.inputs[1:]]
    if any(array is None for array in constants):
        return None
    arrays = [np.asarray(array, np.float64) for array in constants]
    if node.op_type == "GroupNormalization":
        scale, shift = arrays
        return None if np.all(scale == 1) and np.all(shift == 0) else Affine(scale, shift)
    if node.attributes.get_int("training_mode", 0):
        return None
    scale, bias, mean, var = arrays
    scale = scale / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    return Affine(scale, bias - mean * scale)


def _next_layer(node: ir.Node) -> ir.Node | None:
    """Return the Conv that is the only consumer of a node, or the Gemm that reads its mean over the pixels."""
    follower = only_consumer(node.outputs[0])
    if follower is None or follower.op_type == "Conv":
        return follower if follower is None or follower.inputs[0] is node.outputs[0] else None
    if not is_global_mean(follower):
        return None
    layer = only_consumer(follower.outputs[0])
    while layer is not None and layer.op_type in ("Flatten", "Squeeze"):
        layer = only_consumer(layer.outputs[0])
    return layer if layer is not None and layer.op_type == "Gemm" else None


def _can_absorb(layer: ir.Node, channels: int) -> bool:
    """Whether the layer computes W x + b of the channels with constant weights and without padding."""
    weight, attributes = constant(layer.inputs[1]), layer.attributes
    if weight is None or not has_constant_weights(layer):
        return False
    if layer.op_type == "Conv":
        return not any(attributes.get_ints("pads", [0])) and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    inputs = weight.shape[1 if attributes.get_int("transB", 0) else 0]
    return is_plain_gemm(layer) and inputs == channels


def _absorb(layer: ir.Node, affine: Affine, graph: ir.Graph) -> None:
    """Replace the layer by one whose weights and bias include the affine map of its input."""
    weight = constant(layer.inputs[1])
    assert weight is not None
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
    outputs_last = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    matrix = np.moveaxis(weight, -1, 0) if outputs_last else weight  # (out, in / groups, ...)
    scale, shift = (_per_weight(vector, matrix.shape, layer) for vector in (affine.scale, affine.shift))
    added = (matrix * shift).reshape(matrix.shape[0], -1).sum(1)
    scaled = (matrix * scale).astype(weight.dtype)
    folded = ir.node(
        layer.op_type,
        [
            layer.inputs[0],
            initializer(graph, f"{layer.name}.weight", np.moveaxis(scaled, 0, -1) if outputs_last else scaled),
            initializer(graph, f"{layer.name}.bias", ((0 if bias is None else bias) + added).astype(weight.dtype)),
        ],
        layer.attributes,
        name=layer.name,
    )
    graph.insert_before(layer, folded)
    replace_value(layer.outputs[0], folded.outputs[0])


def _per_weight(vector: Vector, shape: tuple[int, ...], layer: ir.Node) -> Vector:
    """Arrange a per-channel vector along the weight's input axis: (out or 1, in / groups, 1, ...)."""
    groups = layer.attributes.get_int("group", 1) if layer.op_type == "Conv" else 1
    by_group = vector.reshape(groups, -1)  # (groups, in / groups)
    rows = np.repeat(by_group, shape[0] // groups, axis=0)  # (out, in / groups)
    return rows.reshape(*rows.shape, *([1] * (len(shape) - 2)))


def _remove_affine(node: ir.Node, graph: ir.Graph) -> None:
    """Bypass a BatchNormalization; set scale and bias of a GroupNormalization to ones and zeros."""
    if node.op_type == "BatchNormalization":
        source = required_input(node)
        node.outputs[0].replace_all_uses_with(source)
        return
    scale = constant(node.inputs[1])
    assert scale is not None
    node.replace_input_with(1, initializer(graph, f"{node.name}.ones", np.ones_like(scale)))
    node.replace_input_with(2, initializer(graph, f"{node.name}.zeros", np.zeros_like(scale)))
