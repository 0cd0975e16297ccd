"""Compute the heads of several projections of the same few tokens by one projection.

With heads() for the Reshape of (N, M, H d) to (N, M, H, d) and the Transpose to (N, H, M, d),

    heads(x W1 + b1), heads(x W2 + b2) = Split(heads(x [W1 W2] + [b1 b2])).

One product and one transposition replace one of each per projection. Tokens that are their own keys and values join
with the identity as weights: each sum of that product has one term that is not zero, so it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevit.export.heads import Heads, heads_made_by, split_into_heads
from edgevit.export.ir_helpers import only_consumer, remove_unused, static_size
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_producing


@dataclass(frozen=True, slots=True)
class _Projection:
    """Heads of tokens that are projected from a source, or that are the source itself."""

    heads: Heads
    layer: Linear | None  # None if the tokens are the source itself

    @property
    def source(self) -> ir.Value:
        return self.heads.tokens if self.layer is None else self.layer.source

    @property
    def first(self) -> ir.Node:
        return self.heads.reshape if self.layer is None else self.layer.product


def merge_heads(model: ir.Model) -> None:
    """Merge the projections of few tokens whose outputs are split into heads of one size."""
    groups: dict[tuple[ir.Value, int], list[_Projection]] = {}
    for node in model.graph:
        heads = heads_made_by(node)
        if heads is not None and has_few_rows(heads.tokens):
            alone = only_consumer(heads.tokens) is heads.reshape
            projection = _Projection(heads, linear_producing(heads.tokens) if alone else None)
            groups.setdefault((projection.source, heads.size), []).append(projection)
    order = {node: index for index, node in enumerate(model.graph)}
    for group in groups.values():
        layers = [projection.layer for projection in group if projection.layer is not None]
        if layers and len(group) > 1:
            first = min((projection.first for projection in group), key=order.__getitem__)
            _merge(group, first, layers[0].weight.dtype, model.graph)
    remove_unused(model)


def _merge(group: list[_Projection], before: ir.Node, dtype: np.dtype[Any], graph: ir.Graph) -> None:
    """Replace the heads of one source by parts of the heads of one projection, inserted before a node."""
    source, name = group[0].source, f"{before.name}_heads"
    unprojected = Linear(before, None, np.eye(static_size(source, -1) or 0, dtype=dtype))
    layers = [projection.layer or unprojected for projection in group]
    projected = insert_linear(
        source,
        np.concatenate([layer.weight for layer in layers], axis=1),
        np.concatenate([layer.bias_or_zeros for layer in layers]),
        op_type="MatMul",
        name=name,
        before=before,
        graph=graph,
    )  # (N, M, H d) of all heads
    split_into_heads(projected, [each.heads for each in group], name=name, before=before, graph=graph)
