"""Fold the order of the channels of tokens into the weights of the norm and the linear layer that read them.

With x[p] for the channels of x in the order p, a permutation,

    x[p] W = x W'                                        W'[p[j]] = W[j]
    LayerNorm(x[p]; scale, bias) = LayerNorm(x; s, b)[p]    s[p[j]] = scale[j], b[p[j]] = bias[j]

since the mean and the variance of the channels do not depend on their order. The Gather that reorders them, a copy of
all tokens number by number, is gone: T2T-ViT's windows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.ir_helpers import constant, only_consumer, remove_unused, replace_value, static_size
from edgevit.export.layer_norm import layer_norm_at
from edgevit.export.linear import Linear, linear_at

Order = NDArray[np.int64]  # (C,)


def fold_channel_order(model: ir.Model) -> None:
    """Remove each Gather that only reorders the channels of one linear layer, or of a norm and its linear layer."""
    for node in list(model.graph):
        order = _order(node)
        if order is not None:
            _fold(node, np.argsort(order), model.graph)
    remove_unused(model)


def _order(gather: ir.Node) -> Order | None:
    """Return the permutation in which a Gather takes the entries of the last axis; None for any other node."""
    if gather.op_type != "Gather" or gather.domain or gather.inputs[0] is None:
        return None
    indices, channels = constant(gather.inputs[1]), static_size(gather.inputs[0], -1)
    rank = len(gather.inputs[0].shape or ())
    if indices is None or indices.ndim != 1 or gather.attributes.get_int("axis", 0) not in (-1, rank - 1):
        return None
    is_permutation = channels is not None and np.array_equal(np.sort(indices % channels), np.arange(channels))
    return indices % channels if is_permutation else None


def _fold(gather: ir.Node, inverse: Order, graph: ir.Graph) -> None:
    """Bypass the Gather, if what reads it can take the channels in their order before it."""
    source, value = gather.inputs[0], gather.outputs[0]
    assert source is not None
    reader = only_consumer(value)
    norm = layer_norm_at(reader) if reader is not None else None
    if norm is not None and norm.source is not value:
        return
    layer = _layer_reading(value if norm is None else norm.output)
    if layer is None:
        return
    layer.replace_weights(layer.weight[inverse], None, graph)
    if norm is not None:
        norm.replace_parameters(norm.scale[inverse], None if norm.bias is None else norm.bias[inverse], graph)
    replace_value(value, source)


def _layer_reading(value: ir.Value) -> Linear | None:
    """Return the linear layer that alone reads a value as its input."""
    reader = only_consumer(value)
    layer = linear_at(reader) if reader is not None else None
    return layer if layer is not None and layer.source is value else None
