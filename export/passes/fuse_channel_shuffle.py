"""A shuffle of the channels in front of a norm and a linear layer becomes part of their weights.

A shuffle is y[c] = x[p(c)], computed as Reshape (…, C) -> (…, a, b), Transpose of a and b, Reshape to (…, C). Over the
channels y has the mean and the variance of x. So where s', t' and W' hold at p(c) what s, t and W hold at c,

    norm(y)[c] = (y[c] - mean) / deviation * s[c] + t[c] = norm'(x)[p(c)], and
    sum over c of norm(y)[c] W[c] = sum over c of norm'(x)[c] W'[c]:

the same terms in another order. Operators that leave the channel axis alone may stand in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevit.export.ir_helpers import constant, initializer, only_consumer, remove_unused

Order = NDArray[np.int64]  # (C,)


@dataclass(frozen=True, slots=True)
class Shuffle:
    source: ir.Value  # x
    order: Order  # p


def fuse_channel_shuffle(model: ir.Model) -> None:
    for node in list(model.graph):
        shuffle = _shuffle_to(node)
        readers = [] if shuffle is None else _readers(node.outputs[0])
        if shuffle is None or not readers:
            continue
        for reader in readers:
            _reorder_weights(reader, np.argsort(shuffle.order), model.graph)
        readers[0].replace_input_with(0, shuffle.source)
    remove_unused(model)


def _shuffle_to(last: ir.Node) -> Shuffle | None:
    """The shuffle that ends with this node, if one does."""
    transpose = _producer(last, "Reshape")
    first = _producer(transpose, "Transpose")
    source = _input(first, "Reshape")
    if transpose is None or first is None or source is None:
        return None
    whole, pairs, back = _shape(source), _shape(first.outputs[0]), _shape(last.outputs[0])
    swapped = [*range(len(pairs) - 2), len(pairs) - 1, len(pairs) - 2]
    if len(pairs) < 2 or list(transpose.attributes.get_ints("perm", [])) != swapped:
        return None
    # All axes behind the first are known and the same, hence the first is too: nothing moves but within (a, b).
    if not whole or len(whole) != len(back) or whole[1:] != back[1:] or None in (*whole[1:], *pairs[-2:]):
        return None
    outer, inner = (dim or 0 for dim in pairs[-2:])
    if outer * inner != whole[-1]:
        return None
    return Shuffle(source, np.arange(outer * inner).reshape(outer, inner).T.reshape(-1))


def _input(node: ir.Node | None, op_type: str) -> ir.Value | None:
    """The first input of a node of this type."""
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def _producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """What computes the first input of a node of this type."""
    value = _input(node, op_type)
    return None if value is None else value.producer()


def _shape(value: ir.Value) -> list[int | None]:
    """The value's shape, None where an axis is not known; nothing where none is."""
    return [dim if isinstance(dim, int) else None for dim in value.shape or ()]


def _readers(value: ir.Value) -> list[ir.Node]:
    """The chain that alone reads `value`, up to the linear layer that mixes its channels; nothing where none does."""
    chain: list[ir.Node] = []
    while (node := only_consumer(value)) is not None and node.inputs[0] is value and value.shape is not None:
        chain.append(node)
        if _is_linear(node):
            return chain
        if not (_is_norm(node, _shape(value)[-1]) or _leaves_channels(node, len(value.shape))):
            return []
        value = node.outputs[0]
    return []


def _is_linear(node: ir.Node) -> bool:
    """Whether the node multiplies by a constant matrix from the right."""
    weight = constant(node.inputs[1]) if node.op_type in ("Gemm", "MatMul") else None
    return weight is not None and weight.ndim >= 2 and not node.attributes.get_int("transA", 0)


def _is_norm(node: ir.Node, channels: int | None) -> bool:
    """Whether the node normalises (its last axis is always in it), with a constant for each channel, not each token."""
    if node.op_type != "LayerNormalization" or len(node.outputs) > 1:
        return False
    weights = [constant(weight) for weight in node.inputs[1:]]
    return all(weight is not None and weight.shape == (channels,) for weight in weights)


def _leaves_channels(node: ir.Node, rank: int) -> bool:
    """Whether the node picks from, or averages over, axes that are known and not the last."""
    if node.op_type == "Gather":
        axes = [node.attributes.get_int("axis", 0)]
    else:
        place = {"ReduceMean": 1, "Slice": 3}.get(node.op_type, len(node.inputs))
        given = constant(node.inputs[place]) if place < len(node.inputs) else None
        axes = [] if given is None else given.tolist()
    return bool(axes) and all(axis % rank != rank - 1 for axis in axes)


def _reorder_weights(reader: ir.Node, order: Order, graph: ir.Graph) -> None:
    """Puts what the reader has for channel order[i] in the place of channel i."""
    if _is_linear(reader):
        axes = {1: -1 if reader.attributes.get_int("transB", 0) else -2}
    else:
        axes = dict.fromkeys(range(1, len(reader.inputs)), 0) if reader.op_type == "LayerNormalization" else {}
    for index, axis in axes.items():
        weight = constant(reader.inputs[index])
        assert weight is not None
        name = f"{reader.name}.{'weight' if index == 1 else 'bias'}"
        reader.replace_input_with(index, initializer(graph, name, np.take(weight, order, axis)))
