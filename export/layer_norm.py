"""LayerNormalization of channels with constant parameters: find it, read and replace its scale and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, initializer, required_input, static_size
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """The norm y = scale n(x) + bias over the last axis of x, where n(x) has mean 0 and variance 1."""

    node: ir.Node
    scale: Array  # (C,)
    bias: Array | None  # (C,)

    @property
    def source(self) -> ir.Value:
        return required_input(self.node)

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def bias_or_zeros(self) -> Array:
        return np.zeros_like(self.scale) if self.bias is None else self.bias

    def replace_parameters(self, scale: Array, bias: Array | None, graph: ir.Graph) -> None:
        """Set parameters of the same shapes; a bias only if the norm has one."""
        for index, array in ((1, scale), (2, bias)):
            if array is not None:
                value = initializer(graph, f"{self.node.name}.{index}", array.astype(self.scale.dtype))
                self.node.replace_input_with(index, value)


def layer_norm_at(node: ir.Node) -> LayerNorm | None:
    """Return the norm of a node, if nothing reads its statistics; None if the node is none."""
    if node.op_type != "LayerNormalization" or node.domain or node.inputs[0] is None:
        return None
    channels, rank = static_size(node.inputs[0], -1), len(node.inputs[0].shape or ())
    if channels is None or node.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return None
    if any(output.is_graph_output() or output.uses() for output in node.outputs[1:]):
        return None
    scale = constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = constant(node.inputs[2]) if has_bias else None
    if scale is None or scale.shape != (channels,) or (has_bias and (bias is None or bias.shape != (channels,))):
        return None
    return LayerNorm(node, scale, bias)
