"""Transpose attention of narrow heads among few tokens, so that OpenVINO computes it in separate products.

With queries Q, keys K, values V and a constant bias B, and the softmax over the keys,

    softmax(Q K^T + B) V = (V^T softmax(K Q^T + B^T))^T

where the softmax of the right side is over the rows. OpenVINO has one kernel for the left side. With AMX in bf16 it
takes heads of fewer than 32 channels, half a tile's row, for windows of 7 x 7 tokens 1.5 times as long as the two
products and the softmax of the right side, whose vectors go along the queries. Wider heads and more tokens are as fast
or faster in the one kernel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    initializer,
    insert,
    is_over_last_axis,
    only_consumer,
    remove_unused,
    replace_value,
    static_size,
    swap_last_axes,
    with_swapped_axes,
)
from edgevit.types import Array

_MAX_CHANNELS = 31  # of a head: a row of an AMX tile holds 32 numbers in bf16
_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class _Attention:
    """The nodes of an attention; each is the only consumer of the one before."""

    scores: ir.Node
    bias: Array | None  # that an Add between scores and softmax adds, (..., queries, keys)
    softmax: ir.Node
    product: ir.Node  # with the values


def transpose_narrow_attention(model: ir.Model) -> None:
    """Transpose each attention whose heads are narrow and whose tokens are few."""
    for node in list(model.graph):
        attention = _attention_around(node)
        if attention is not None and _is_small(attention):
            _transpose(attention, model.graph)
    remove_unused(model)


def _attention_around(softmax: ir.Node) -> _Attention | None:
    """Return the attention with this softmax; None for any other node."""
    if softmax.op_type != "Softmax" or softmax.domain or not is_over_last_axis(softmax):
        return None
    before, product = softmax.inputs[0], only_consumer(softmax.outputs[0])
    if before is None or only_consumer(before) is not softmax or product is None or product.op_type != "MatMul":
        return None
    scores, bias = before.producer(), None
    if scores is not None and scores.op_type == "Add":
        index = 1 if constant(scores.inputs[0]) is None else 0
        bias, before = constant(scores.inputs[index]), scores.inputs[1 - index]
        if bias is None or bias.ndim < 2 or before is None or only_consumer(before) is not scores:
            return None
        scores = before.producer()
    if scores is None or scores.op_type != "MatMul" or product.inputs[0] is not softmax.outputs[0]:
        return None
    return _Attention(scores, bias, softmax, product)


def _is_small(attention: _Attention) -> bool:
    """Whether queries, keys and values have known sizes within the limits, and an axis of heads or windows."""
    queries, keys = attention.scores.inputs
    values = attention.product.inputs[1]
    channels = [static_size(queries, -1), static_size(values, -1)]
    tokens = [static_size(queries, -2), static_size(keys, -1)]
    ranks = {len(value.shape or ()) if value is not None else 0 for value in (queries, keys, values)}
    within = [size is not None and size <= _MAX_CHANNELS for size in channels]
    within += [size is not None and size <= _MAX_TOKENS for size in tokens]
    return all(within) and len(ranks) == 1 and min(ranks) > 2


def _transpose(attention: _Attention, graph: ir.Graph) -> None:
    scores, softmax, product = attention.scores, attention.softmax, attention.product
    queries, keys = scores.inputs
    weights, result = softmax.outputs[0], product.outputs[0]
    assert queries is not None and keys is not None
    swap = functools.partial(swap_last_axes, before=product, graph=graph)
    add = functools.partial(insert, before=product, graph=graph, like=weights, shape=with_swapped_axes(weights))
    left, right = swap(keys, name=f"{scores.name}_keys"), swap(queries, name=f"{scores.name}_queries")
    value = add(ir.node("MatMul", [left, right], name=scores.name))
    if attention.bias is not None:
        bias = initializer(graph, f"{scores.name}.bias", np.swapaxes(attention.bias, -1, -2))
        value = add(ir.node("Add", [value, bias], name=f"{scores.name}_bias"))
    value = add(ir.node("Softmax", [value], {"axis": -2}, name=softmax.name))
    values = swap(product.inputs[1], name=f"{product.name}_values")
    node = ir.node("MatMul", [values, value], name=product.name)
    mixture = insert(node, before=product, graph=graph, like=result, shape=with_swapped_axes(result))
    replace_value(result, swap(mixture, name=f"{product.name}_result"))
