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

from edgevit.export.ir_helpers import constant, initializer, only_consumer, remove_unused, replace_value, static_size
from edgevit.export.linear import Linear, linear_at
from edgevit.types import Array

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
    norm = only_consumer(value)
    if norm is not None and _is_norm_of(norm, value, len(inverse)):
        value = norm.outputs[0]
    else:
        norm = None
    layer = _layer_reading(value)
    if layer is None:
        return
    layer.replace_weights(layer.weight[inverse], None, graph)
    if norm is not None:
        _reorder_parameters(norm, inverse, graph)
    replace_value(gather.outputs[0], source)


def _layer_reading(value: ir.Value) -> Linear | None:
    """Return the linear layer that alone reads a value as its input."""
    reader = only_consumer(value)
    layer = linear_at(reader) if reader is not None else None
    return layer if layer is not None and layer.source is value else None


def _is_norm_of(node: ir.Node, value: ir.Value, channels: int) -> bool:
    """Whether the node normalizes the last axis of a value, with a constant scale and bias for each channel."""
    if node.op_type != "LayerNormalization" or node.domain or node.inputs[0] is not value:
        return False
    is_last = node.attributes.get_int("axis", -1) in (-1, len(value.shape or ()) - 1)
    statistics = node.outputs[1:]
    return is_last and not any(_is_read(output) for output in statistics) and _has_constants(node, channels)


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _has_constants(norm: ir.Node, channels: int) -> bool:
    return all(_vector(parameter, channels) is not None for parameter in norm.inputs[1:] if parameter is not None)


def _vector(parameter: ir.Value, channels: int) -> Array | None:
    array = constant(parameter)
    return array if array is not None and array.shape == (channels,) else None


def _reorder_parameters(norm: ir.Node, inverse: Order, graph: ir.Graph) -> None:
    for index, parameter in enumerate(norm.inputs[1:], start=1):
        array = constant(parameter)
        if array is not None:
            norm.replace_input_with(index, initializer(graph, f"{norm.name}.{index}", array[inverse]))
