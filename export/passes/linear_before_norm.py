"""Compute the heads of few tokens behind a LayerNormalization from the terms of the sum that it normalizes.

The sum is s = r + a P + p: tokens r, and a projection of others. With n channels, the norm's scale g and bias t, and
the centered columns C = (I - 1/n) diag(g) W of the weights, where 1 is the matrix of ones,

    norm(s) W + b = (s C) / deviation(s) + t W + b,    s C = r C + a (P C) + p C.

`merge_linear` then computes r C with the other layers that read r, and a (P C) with a P, so that no product stands
between the norm and the attention. TensorRT normalizes s and these heads in one kernel, where a product would begin a
new one; it computes the deviation, which is written out here, once with that of the norm. It also splits the tokens
that are their own keys and values into heads there, behind a Concat.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.heads import Heads, heads_made_by, split_into_heads
from edgevit.export.ir_helpers import (
    constant,
    initializer,
    insert,
    int64_initializer,
    only_consumer,
    readers_of,
    remove_unused,
    replace_value,
    static_size,
)
from edgevit.export.layer_norm import LayerNorm, layer_norm_at
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_at, linear_producing
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class _Sum:
    """The sum r + a P + p of tokens and a projection."""

    tokens: ir.Value  # r (N, M, n), or (1, M, n) if constant
    projection: Linear  # a P + p of other tokens a (N, M, k)


def linear_before_norm(model: ir.Model) -> None:
    """Move the layer of heads that alone reads a norm of few tokens in front of the norm."""
    for node in list(model.graph):
        norm = layer_norm_at(node)
        terms = _terms_of(norm.source) if norm is not None else None
        if norm is None or terms is None:
            continue
        layers = [layer for reader in readers_of(node) if (layer := linear_at(reader)) is not None]
        heads = _heads_of(layers[0].output) if len(layers) == 1 else []
        if len(heads) == 1 and only_consumer(heads[0].tokens) is heads[0].reshape:
            _move(layers[0], norm, terms, heads[0].size, model.graph)
    remove_unused(model)


def _terms_of(total: ir.Value) -> _Sum | None:
    """Return the terms of a sum over few tokens, if its tokens r are constant or read by another layer."""
    addition = total.producer()
    if addition is None or addition.op_type != "Add" or not has_few_rows(total):
        return None
    for tokens, projected in (addition.inputs, reversed(addition.inputs)):
        layer = linear_producing(projected) if projected is not None else None
        if tokens is None or projected is None or layer is None or only_consumer(projected) is not addition:
            continue
        if static_size(tokens, -1) != layer.weight.shape[1]:  # numbers that are added to all channels
            continue
        if constant(tokens) is not None or any(linear_at(reader) is not None for reader, _ in tokens.uses()):
            return _Sum(tokens, layer)
    return None


def _heads_of(tokens: ir.Value) -> list[Heads]:
    """Return the heads that tokens are split into."""
    readers = [reader for split, _ in tokens.uses() for reader in readers_of(split)]
    return [heads for reader in readers if (heads := heads_made_by(reader)) is not None]


def _move(layer: Linear, norm: LayerNorm, terms: _Sum, size: int, graph: ir.Graph) -> None:
    """Compute the outputs of a layer from the terms of the sum, and its heads of a size with those of the norm."""
    product, dtype = layer.product, layer.weight.dtype
    scaled = norm.scale[:, None].astype(np.float64) * layer.weight  # diag(g) W
    bias = norm.bias_or_zeros.astype(np.float64) @ layer.weight + layer.bias_or_zeros
    numerator = _insert_products(terms, scaled - scaled.mean(axis=0), layer, graph)
    deviation = _insert_deviation(norm, product, graph)
    add = functools.partial(insert, before=product, graph=graph, like=layer.output, shape=layer.output.shape)
    quotient = add(ir.node("Div", [numerator, deviation], name=f"{product.name}_Div"))
    offset = initializer(graph, f"{product.name}.bias", bias.astype(dtype))
    projected = add(ir.node("Add", [quotient, offset], name=f"{product.name}_Add"))
    replace_value(layer.output, projected)
    heads = [each for tokens in (projected, norm.output) for each in _heads_of(tokens) if each.size == size]
    if len(heads) > 1:
        _join_heads(heads, product, graph)


def _insert_products(terms: _Sum, centered: Array, layer: Linear, graph: ir.Graph) -> ir.Value:
    """Insert r C + a (P C) + p C, for the centered columns C (n, out)."""
    product, dtype, projection = layer.product, layer.weight.dtype, terms.projection
    add = functools.partial(insert_linear, op_type="MatMul", before=product, graph=graph)
    name, tokens = f"{product.name}_of_tokens", constant(terms.tokens)
    if tokens is None:
        of_tokens = add(terms.tokens, centered.astype(dtype), None, name=name)
    else:
        of_tokens = initializer(graph, name, (tokens @ centered).astype(dtype))
    weight, bias = projection.weight @ centered, projection.bias_or_zeros @ centered
    of_projection = add(
        projection.source, weight.astype(dtype), bias.astype(dtype), name=f"{product.name}_of_projection"
    )
    node = ir.node("Add", [of_tokens, of_projection], name=f"{product.name}_Sum")
    return insert(node, before=product, graph=graph, like=layer.output, shape=layer.output.shape)


def _insert_deviation(norm: LayerNorm, before: ir.Node, graph: ir.Graph) -> ir.Value:
    """Insert the root of the variance of each token plus epsilon, (N, M, 1)."""
    source, name = norm.source, f"{norm.node.name}_deviation"
    assert source.shape is not None
    axes = int64_initializer(graph, f"{name}.axes", [-1])
    epsilon = norm.node.attributes.get_float("epsilon", 1e-5)
    term = initializer(graph, f"{name}.epsilon", np.asarray(epsilon, norm.scale.dtype))

    def add(op_type: str, inputs: list[ir.Value], suffix: str, shape: ir.Shape) -> ir.Value:
        attributes = {"keepdims": 1} if op_type == "ReduceMean" else {}
        node = ir.node(op_type, inputs, attributes, name=f"{name}_{suffix}")
        return insert(node, before=before, graph=graph, like=source, shape=shape)

    rows, row = source.shape, ir.Shape([*source.shape[:-1], 1])
    centered = add("Sub", [source, add("ReduceMean", [source, axes], "Mean", row)], "Sub", rows)
    variance = add("ReduceMean", [add("Mul", [centered, centered], "Mul", rows), axes], "Variance", row)
    return add("Sqrt", [add("Add", [variance, term], "Add", row)], "Sqrt", row)


def _join_heads(heads: list[Heads], before: ir.Node, graph: ir.Graph) -> None:
    """Split tokens that are computed before a node into heads, side by side, by one Reshape and one Transpose."""
    first, name = heads[0].tokens, f"{before.name}_joined"
    shape = ir.Shape([*(first.shape or ())[:-1], sum(each.count * each.size for each in heads)])
    node = ir.node("Concat", [each.tokens for each in heads], {"axis": -1}, name=name)
    joined = insert(node, before=before, graph=graph, like=first, shape=shape)
    split_into_heads(joined, heads, name=name, before=before, graph=graph)
