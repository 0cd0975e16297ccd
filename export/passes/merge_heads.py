"""Compute the heads of several projections of the same few tokens by one projection.

With heads() for the Reshape of (N, M, H d) to (N, M, H, d) and the Transpose to (N, H, M, d),

    heads(x W1 + b1), heads(x W2 + b2) = Split(heads(x [W1 W2] + [b1 b2])).

One product and one transposition replace one of each per projection. Tokens that are their own keys and values join
with the identity as weights: each sum of that product has one term that is not zero, so it is exact.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    insert,
    int64_initializer,
    only_consumer,
    remove_unused,
    replace_by_split,
    static_size,
)
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_producing

_TO_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True, slots=True)
class _Heads:
    """Tokens (N, M, H d), projected from a source or the source itself, split into H heads (N, H, M, d)."""

    layer: Linear | None  # the projection; None if the tokens are the source itself
    source: ir.Value
    reshape: ir.Node
    transpose: ir.Node
    count: int  # H
    size: int  # d

    @property
    def first(self) -> ir.Node:
        return self.reshape if self.layer is None else self.layer.product


def merge_heads(model: ir.Model) -> None:
    """Merge the projections of few tokens whose outputs are split into heads of one size."""
    groups: dict[tuple[ir.Value, int], list[_Heads]] = {}
    for node in model.graph:
        heads = _heads_made_by(node)
        if heads is not None:
            groups.setdefault((heads.source, heads.size), []).append(heads)
    order = {node: index for index, node in enumerate(model.graph)}
    for group in groups.values():
        projections = [heads.layer for heads in group if heads.layer is not None]
        if projections and len(group) > 1:
            first = min((heads.first for heads in group), key=order.__getitem__)
            _merge(group, first, projections[0].weight.dtype, model.graph)
    remove_unused(model)


def _heads_made_by(transpose: ir.Node) -> _Heads | None:
    """Return the heads that a Transpose makes of few tokens; None for any other node."""
    if transpose.op_type != "Transpose" or list(transpose.attributes.get_ints("perm", [])) != _TO_HEADS:
        return None
    split = transpose.inputs[0]  # (N, M, H, d)
    reshape = split.producer() if split is not None else None
    if split is None or reshape is None or reshape.op_type != "Reshape" or only_consumer(split) is not transpose:
        return None
    tokens, count, size = reshape.inputs[0], static_size(split, 2), static_size(split, 3)
    if tokens is None or count is None or size is None or constant(reshape.inputs[1]) is None:
        return None
    keeps_tokens = len(tokens.shape or ()) == 3 and static_size(tokens, 1) == static_size(split, 1)
    keeps_channels = static_size(tokens, -1) == count * size
    if not (keeps_tokens and keeps_channels) or not has_few_rows(tokens) or transpose.outputs[0].is_graph_output():
        return None
    layer = linear_producing(tokens) if only_consumer(tokens) is reshape else None
    return _Heads(layer, tokens if layer is None else layer.source, reshape, transpose, count, size)


def _merge(group: list[_Heads], before: ir.Node, dtype: np.dtype[Any], graph: ir.Graph) -> None:
    """Replace the heads of one source by parts of the heads of one projection, inserted before a node."""
    source, size, name = group[0].source, group[0].size, f"{before.name}_heads"
    batch, tokens = (source.shape or ir.Shape([None, None]))[:2]
    unprojected = Linear(before, None, np.eye(static_size(source, -1) or 0, dtype=dtype))
    layers = [heads.layer or unprojected for heads in group]
    counts = [heads.count for heads in group]
    projected = insert_linear(
        source,
        np.concatenate([layer.weight for layer in layers], axis=1),
        np.concatenate([layer.bias_or_zeros for layer in layers]),
        op_type="MatMul",
        name=name,
        before=before,
        graph=graph,
    )  # (N, M, H d) of all heads
    shape = int64_initializer(graph, f"{name}.shape", [-1, static_size(source, 1) or 0, sum(counts), size])
    add = functools.partial(insert, before=before, graph=graph, like=projected)
    split = add(
        ir.node("Reshape", [projected, shape], name=f"{name}_Reshape"),
        shape=ir.Shape([batch, tokens, sum(counts), size]),
    )
    heads = add(
        ir.node("Transpose", [split], {"perm": _TO_HEADS}, name=f"{name}_Transpose"),
        shape=ir.Shape([batch, sum(counts), tokens, size]),
    )
    sizes = int64_initializer(graph, f"{name}.sizes", counts)
    parts = [old.transpose.outputs[0] for old in group]
    replace_by_split(parts, heads, sizes, axis=1, before=before, graph=graph)
