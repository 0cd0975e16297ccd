"""Tokens split into the heads of an attention: find them, and split several tensors of tokens together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    insert,
    int64_initializer,
    only_consumer,
    replace_by_split,
    static_size,
)

_TO_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True, slots=True)
class Heads:
    """The Reshape of tokens (N, M, H d) to (N, M, H, d) and the Transpose to heads (N, H, M, d)."""

    tokens: ir.Value
    reshape: ir.Node
    transpose: ir.Node
    count: int  # H
    size: int  # d


def heads_made_by(transpose: ir.Node) -> Heads | None:
    """Return the heads that a Transpose makes of tokens; None for any other node."""
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
    if not (keeps_tokens and keeps_channels) or transpose.outputs[0].is_graph_output():
        return None
    return Heads(tokens, reshape, transpose, count, size)


def split_into_heads(tokens: ir.Value, heads: Sequence[Heads], *, name: str, before: ir.Node, graph: ir.Graph) -> None:
    """Replace heads of one size d by parts of those of `tokens` (N, M, sum of H d), inserted before a node."""
    size, counts = heads[0].size, [each.count for each in heads]
    batch, rows = (tokens.shape or ir.Shape([None, None]))[:2]
    shape = int64_initializer(graph, f"{name}.shape", [-1, static_size(tokens, 1) or 0, sum(counts), size])
    add = functools.partial(insert, before=before, graph=graph, like=tokens)
    split = add(
        ir.node("Reshape", [tokens, shape], name=f"{name}_Reshape"), shape=ir.Shape([batch, rows, sum(counts), size])
    )
    joined = add(
        ir.node("Transpose", [split], {"perm": _TO_HEADS}, name=f"{name}_Transpose"),
        shape=ir.Shape([batch, sum(counts), rows, size]),
    )
    sizes = int64_initializer(graph, f"{name}.sizes", counts)
    replace_by_split([each.transpose.outputs[0] for each in heads], joined, sizes, axis=1, before=before, graph=graph)
