"""Fold BatchNormalization into the preceding Conv or Gemm.

y = scale (x - mean) / sqrt(var + eps) + bias is an affine map per channel. With a = scale / sqrt(var + eps) along the
output channels, the folded layer has the weights W' = W a and the bias b' = (b - mean) a + bias, computed in float64.

onnxscript's `fuse_batchnorm` rules compute in float32 and skip layers whose weights another node reads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.ir_helpers import constant, initializer, is_plain_gemm, only_consumer, remove_unused, replace_value


def fuse_batchnorm(model: ir.Model) -> None:
    """Fold each BatchNormalization that is the only consumer of a Conv or Gemm with constant weights."""
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and not node.attributes.get_int("training_mode", 0):
            _fold(node, model.graph)
    remove_unused(model)


def _fold(norm: ir.Node, graph: ir.Graph) -> None:
    layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if layer is None or layer.op_type not in ("Conv", "Gemm") or only_consumer(layer.outputs[0]) is not norm:
        return
    weight = constant(layer.inputs[1])
    statistics = [constant(value) for value in norm.inputs[1:5]]
    if weight is None or any(array is None for array in statistics) or not _is_affine(layer):
        return
    scale, bias, mean, var = (np.asarray(array, np.float64) for array in statistics)
    multiplier = scale / np.sqrt(var + norm.attributes.get_float("epsilon", 1e-5))
    old_bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
    shifted = (0.0 if old_bias is None else old_bias.astype(np.float64)) - mean
    folded = ir.node(
        layer.op_type,
        [
            layer.inputs[0],
            initializer(graph, f"{layer.name}.weight", _scale_outputs(layer, weight, multiplier)),
            initializer(graph, f"{layer.name}.bias", (shifted * multiplier + bias).astype(weight.dtype)),
        ],
        layer.attributes,
        name=layer.name,
    )
    graph.insert_before(norm, folded)
    replace_value(norm.outputs[0], folded.outputs[0])


def _is_affine(layer: ir.Node) -> bool:
    """Whether the layer computes x W + b with a constant bias; Gemm can also scale its terms and transpose x."""
    if len(layer.inputs) > 2 and layer.inputs[2] is not None and constant(layer.inputs[2]) is None:
        return False
    return layer.op_type == "Conv" or is_plain_gemm(layer)


def _scale_outputs(layer: ir.Node, weight: NDArray[np.generic], factor: NDArray[np.float64]) -> NDArray[np.generic]:
    outputs_last = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    shape = (1, -1) if outputs_last else (-1, *([1] * (weight.ndim - 1)))
    return (weight.astype(np.float64) * factor.reshape(shape)).astype(weight.dtype)
