"""Fold a channel shuffle into the following norm and linear layer.

A shuffle is y[c] = x[p(c)], computed as Reshape (..., C) to (..., a, b), Transpose of a and b, Reshape to (..., C).
Over the channels, x and y have the same mean and variance. With s'[p(c)] = s[c], t'[p(c)] = t[c] and W'[p(c)] = W[c],

    norm(y)[c] = (y[c] - mean) / deviation * s[c] + t[c] = norm'(x)[p(c)]
    sum over c of norm(y)[c] W[c] = sum over c of norm'(x)[c] W'[c]

which are the same terms in another order. Operators that do not change the channel axis may lie in between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.channel_order import Order, Shuffle
from edgevit.export.ir_helpers import constant, initializer, only_consumer, remove_unused


def fuse_channel_shuffle(model: ir.Model) -> None:
    """Remove each shuffle whose only consumers lead to a linear layer, and reorder their weights."""
    for node in list(model.graph):
        shuffle = _shuffle_ending_at(node)
        chain = [] if shuffle is None else _chain_to_linear(node.outputs[0])
        if shuffle is None or not chain:
            continue
        for consumer in chain:
            _reorder_weights(consumer, np.argsort(shuffle.order), model.graph)
        chain[0].replace_input_with(0, shuffle.source)
    remove_unused(model)


def _shuffle_ending_at(last: ir.Node) -> Shuffle | None:
    """Return the shuffle whose second Reshape is `last`; None if there is none."""
    transpose = _producer(last, "Reshape")
    first = _producer(transpose, "Transpose")
    source = _input(first, "Reshape")
    if transpose is None or first is None or source is None:
        return None
    whole, pairs, back = _shape(source), _shape(first.outputs[0]), _shape(last.outputs[0])
    swapped = [*range(len(pairs) - 2), len(pairs) - 1, len(pairs) - 2]
    if len(pairs) < 2 or list(transpose.attributes.get_ints("perm", [])) != swapped:
        return None
    # All axes after the first are known and unchanged, hence the first is too, and only (a, b) are permuted.
    if not whole or len(whole) != len(back) or whole[1:] != back[1:] or None in (*whole[1:], *pairs[-2:]):
        return None
    outer, inner = (dim or 0 for dim in pairs[-2:])
    if outer * inner != whole[-1]:
        return None
    return Shuffle(source, np.arange(outer * inner).reshape(outer, inner).T.reshape(-1), last.outputs[0])


def _input(node: ir.Node | None, op_type: str) -> ir.Value | None:
    """Return the first input of a node of this type; None for other nodes."""
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def _producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return the producer of the first input of a node of this type; None for other nodes."""
    value = _input(node, op_type)
    return None if value is None else value.producer()


def _shape(value: ir.Value) -> list[int | None]:
    """Return the shape of a value with None for unknown axes; [] if the rank is unknown."""
    return [dim if isinstance(dim, int) else None for dim in value.shape or ()]


def _chain_to_linear(value: ir.Value) -> list[ir.Node]:
    """Return the chain of only consumers from `value` to the linear layer that mixes its channels; [] if none."""
    chain: list[ir.Node] = []
    while (node := only_consumer(value)) is not None and node.inputs[0] is value and value.shape is not None:
        chain.append(node)
        if _is_linear(node):
            return chain
        if not (_is_norm(node, _shape(value)[-1]) or _keeps_channels(node, len(value.shape))):
            return []
        value = node.outputs[0]
    return []


def _is_linear(node: ir.Node) -> bool:
    """Whether the node multiplies its input by a constant matrix on the right."""
    weight = constant(node.inputs[1]) if node.op_type in ("Gemm", "MatMul") else None
    return weight is not None and weight.ndim >= 2 and not node.attributes.get_int("transA", 0)


def _is_norm(node: ir.Node, channels: int | None) -> bool:
    """Whether the node is a LayerNormalization with constant scale and bias per channel (not per token)."""
    if node.op_type != "LayerNormalization" or len(node.outputs) > 1:
        return False
    weights = [constant(weight) for weight in node.inputs[1:]]
    return all(weight is not None and weight.shape == (channels,) for weight in weights)


def _keeps_channels(node: ir.Node, rank: int) -> bool:
    """Whether the node selects from, or averages over, known axes other than the last."""
    if node.op_type == "Gather":
        axes = [node.attributes.get_int("axis", 0)]
    else:
        place = {"ReduceMean": 1, "Slice": 3}.get(node.op_type, len(node.inputs))
        given = constant(node.inputs[place]) if place < len(node.inputs) else None
        axes = [] if given is None else given.tolist()
    return bool(axes) and all(axis % rank != rank - 1 for axis in axes)


def _reorder_weights(reader: ir.Node, order: Order, graph: ir.Graph) -> None:
    """Move the weights of input channel order[i] to channel i."""
    if _is_linear(reader):
        axes = {1: -1 if reader.attributes.get_int("transB", 0) else -2}
    else:
        axes = dict.fromkeys(range(1, len(reader.inputs)), 0) if reader.op_type == "LayerNormalization" else {}
    for index, axis in axes.items():
        weight = constant(reader.inputs[index])
        assert weight is not None
        name = f"{reader.name}.{'weight' if index == 1 else 'bias'}"
        reader.replace_input_with(index, initializer(graph, name, np.take(weight, order, axis)))
