"""Reorder the channels of tokens in the weights of the norm and the linear layer that read them.

With x[p] for the channels of x in the order p, a permutation,

    x[p] W = x W'                                        W'[p[j]] = W[j]
    LayerNorm(x[p]; scale, bias) = LayerNorm(x; s, b)[p]    s[p[j]] = scale[j], b[p[j]] = bias[j]

since the mean and the variance of the channels do not depend on their order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import only_consumer, replace_value
from edgevit.export.layer_norm import layer_norm_at
from edgevit.export.linear import Linear, linear_at
from edgevit.export.tensor_parts import ChannelOrder, mark_channel_order


def replace_reordered(value: ir.Value, source: ir.Value, order: ChannelOrder, graph: ir.Graph) -> bool:
    """Replace tokens (..., C), which are source[order], by `source`, if a linear layer alone reads them.

    A norm may be between them. False, and nothing changes, if anything else reads the tokens.
    """
    reader = only_consumer(value)
    norm = layer_norm_at(reader) if reader is not None else None
    if norm is not None and norm.source is not value:
        return False
    layer = _layer_reading(value if norm is None else norm.output)
    if layer is None:
        return False
    inverse = np.argsort(order)
    layer.replace_weights(layer.weight[inverse], None, graph)
    if norm is not None:
        norm.replace_parameters(norm.scale[inverse], None if norm.bias is None else norm.bias[inverse], graph)
        mark_channel_order(norm.output, order)
    replace_value(value, source)
    return True


def _layer_reading(value: ir.Value) -> Linear | None:
    """Return the linear layer that alone reads a value as its input."""
    reader = only_consumer(value)
    layer = linear_at(reader) if reader is not None else None
    return layer if layer is not None and layer.source is value else None
