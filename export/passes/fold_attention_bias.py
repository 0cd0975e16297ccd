"""The biases of q, k and v where they cost no kernel of their own.

In softmax(q k^T) v a linear layer made q, k and v, and moves have split them into heads.

* A bias of k adds the same to every score of a query, and the softmax does not see it: it goes.
* A bias of v comes out as it went in, since the weights of a query sum to one. Moves and a linear layer follow, and it
  becomes part of that layer's bias: b + b_v W.
* A bias of q is added behind the moves, to the heads.

Of the joint product without a bias TensorRT-RTX 1.7 writes k and v where its attention reads them; with one in front of
the split it copies q, k and v, a kernel each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    initializer,
    only_consumer,
    remove_unused,
    replace_value,
)
from edgevit.types import Array

_WIDEST = 64  # channels of a single head: of 96 and 192 it would no longer be fused, of several heads with 96 it is
_BATCH = 2  # what stands for a dynamic batch where moves are followed


@dataclass(frozen=True, slots=True)
class Part:
    """q, k or v: the sum with its bias, its channels of that, and the nodes from there to the product that reads it."""

    add: ir.Node
    split: ir.Node | None
    value: ir.Value  # (…, tokens, channels)
    bias: Array  # (channels,)
    path: tuple[ir.Node, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """The linear layer behind an attention, and the moves that lead to it."""

    moves: tuple[ir.Node, ...]
    product: ir.Node
    add: ir.Node


def fold_attention_bias(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type == "Softmax" and _is_over_the_last(node):
            _lower(node, model.graph)
    remove_unused(model)


def _is_over_the_last(softmax: ir.Node) -> bool:
    return softmax.attributes.get_int("axis", -1) in (-1, len(softmax.outputs[0].shape or ()) - 1)


def _lower(softmax: ir.Node, graph: ir.Graph) -> None:
    scores, mixed = _scores(softmax.inputs[0]), only_consumer(softmax.outputs[0])
    if scores is None or mixed is None or mixed.op_type != "MatMul" or mixed.inputs[0] is not softmax.outputs[0]:
        return
    q, k, v = (_part(value) for value in (*scores.inputs, mixed.inputs[1]))
    output = _output(mixed)
    if q is None or k is None or v is None or output is None or not _are_all_that_is_read((q, k, v)):
        return
    if _is_one_wide_head(q):
        return
    turned = next((node for node in q.path if node.op_type == "Transpose"), None)
    shift = _shift(v, mixed, output)
    if turned is None or shift is None or not _is_unseen(k):
        return
    _add_to_heads(q, turned, graph)
    _add_to_layer(output, shift, graph)
    for add in {part.add for part in (q, k, v)}:
        product = next(value for value in add.inputs if value is not None and constant(value) is None)
        replace_value(add.outputs[0], product)


# What there is


def _scores(value: ir.Value | None) -> ir.Node | None:
    """The product q k^T that `value` is, once it is scaled and masks and position biases are added."""
    node = value.producer() if value is not None else None
    if value is None or node is None or only_consumer(value) is None:
        return None
    if node.op_type == "MatMul":
        return node
    if node.op_type == "Add" or _is_scaling(node):
        return next((found for operand in node.inputs if (found := _scores(operand)) is not None), None)
    return None


def _is_scaling(node: ir.Node) -> bool:
    """Whether the node multiplies, or divides, by one constant number."""
    factor = constant(node.inputs[1]) if node.op_type in ("Div", "Mul") else None
    return factor is not None and factor.size == 1


def _part(value: ir.Value | None) -> Part | None:
    path: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and only_consumer(value) is not None:
        if node.op_type == "Split" and node.inputs[0] is not None:
            return _summed(node.inputs[0].producer(), node, value, path)
        if node.op_type == "Add":
            return _summed(node, None, value, path)
        if not (_is_move(node) or _is_scaling(node)):
            return None
        path.insert(0, node)
        value = node.inputs[0]
    return None


def _is_move(node: ir.Node) -> bool:
    return node.op_type == "Transpose" or (node.op_type == "Reshape" and constant(node.inputs[1]) is not None)


def _summed(add: ir.Node | None, split: ir.Node | None, value: ir.Value, path: Sequence[ir.Node]) -> Part | None:
    bias = _bias_of_layer(add)
    if add is None or bias is None or value.shape is None:
        return None
    start = 0
    for output in split.outputs if split is not None else ():
        width = output.shape[-1] if output.shape is not None else None
        if not isinstance(width, int) or output is value:
            break
        start += width
    width = value.shape[-1]
    if not isinstance(width, int) or (split is not None and not _splits_the_last(split, add)):
        return None
    return Part(add, split, value, bias[start : start + width], tuple(path))


def _splits_the_last(split: ir.Node, add: ir.Node) -> bool:
    """Whether the node, and no other, reads the sum, and parts its last axis."""
    last = len(add.outputs[0].shape or ()) - 1
    return only_consumer(add.outputs[0]) is split and split.attributes.get_int("axis", 0) in (-1, last)


def _bias_of_layer(add: ir.Node | None) -> Array | None:
    """The bias (channels,) where the node adds one to a product with constant weights."""
    if add is None or add.op_type != "Add":
        return None
    for product, bias in (add.inputs, add.inputs[::-1]):
        vector, node = constant(bias), product.producer() if product is not None else None
        if vector is not None and vector.ndim == 1 and node is not None and _is_product_with_weights(node):
            return vector
    return None


def _is_product_with_weights(node: ir.Node) -> bool:
    weights = constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return weights is not None and weights.ndim == 2


def _output(mixed: ir.Node) -> Output | None:
    moves: list[ir.Node] = []
    node = only_consumer(mixed.outputs[0])
    while node is not None and _is_move(node):
        moves.append(node)
        node = only_consumer(node.outputs[0])
    if node is None or not _is_product_with_weights(node):
        return None
    add = only_consumer(node.outputs[0])
    return Output(tuple(moves), node, add) if add is not None and _bias_of_layer(add) is not None else None


def _is_one_wide_head(q: Part) -> bool:
    heads = q.path[0].outputs[0].shape if q.path else None  # (…, tokens, heads, channels)
    return heads is not None and heads[-1] == len(q.bias) > _WIDEST


def _are_all_that_is_read(parts: Sequence[Part]) -> bool:
    """Whether nothing else reads the sums."""
    read = {part.value for part in parts}
    return all(part.split is None or read.issuperset(part.split.outputs) for part in parts)


# Where a bias goes


def _follow(array: Array, path: Sequence[ir.Node]) -> Array:
    """What the moves and the scalings of `path` make of `array`. Raises ValueError where it does not fit."""
    for node in path:
        if node.op_type == "Transpose":
            array = array.transpose(node.attributes.get_ints("perm", range(array.ndim)[::-1]))
        elif node.op_type == "Reshape":
            target = np.asarray(constant(node.inputs[1]))
            array = array.reshape([array.shape[axis] if size == 0 else size for axis, size in enumerate(target)])
        else:
            factor = np.asarray(constant(node.inputs[1])).item()
            array = array / factor if node.op_type == "Div" else array * factor
    return array


def _spread(part: Part) -> Array:
    """The bias at each token."""
    assert part.value.shape is not None
    shape = [dim if isinstance(dim, int) else _BATCH for dim in part.value.shape]
    return np.broadcast_to(part.bias, shape)


def _is_unseen(k: Part) -> bool:
    """Whether the bias of k (…, channels, tokens) is the same for all tokens."""
    try:
        operand = _follow(_spread(k), k.path)
    except ValueError:
        return False
    return bool(np.all(operand == operand[..., :1]))


def _shift(v: Part, mixed: ir.Node, output: Output) -> Array | None:
    """What the bias of v adds to the input of the layer behind the attention, (channels,)."""
    try:
        operand = _follow(_spread(v), v.path)  # (…, tokens, channels)
        if not np.all(operand == operand[..., :1, :]):
            return None
        tokens = mixed.outputs[0].shape[-2] if mixed.outputs[0].shape is not None else None
        rows = np.repeat(operand[..., :1, :], tokens if isinstance(tokens, int) else 1, axis=-2)
        added = _follow(rows, output.moves)
    except ValueError:
        return None
    vector = added.reshape(-1, added.shape[-1])
    return vector[0] if np.all(vector == vector[0]) else None


def _add_to_heads(q: Part, turned: ir.Node, graph: ir.Graph) -> None:
    heads = _follow(_spread(q), q.path[: q.path.index(turned) + 1])
    for axis in range(heads.ndim):
        first = heads.take([0], axis)
        heads = first if np.all(heads == first) else heads
    value = turned.outputs[0]
    add = ir.node("Add", [value, initializer(graph, f"{q.add.name}.query", heads)], name=f"{q.add.name}_query")
    copy_shape_and_type(add.outputs[0], value)
    graph.insert_after(turned, add)
    for use in list(value.uses()):
        if use.node is not add:
            use.node.replace_input_with(use.idx, add.outputs[0])


def _add_to_layer(output: Output, shift: Array, graph: ir.Graph) -> None:
    weights = np.asarray(constant(output.product.inputs[1]))  # (channels, outputs)
    for index, value in enumerate(output.add.inputs):
        bias = constant(value)
        if bias is not None:
            moved = (bias + shift.astype(np.float64) @ weights).astype(bias.dtype)
            output.add.replace_input_with(index, initializer(graph, f"{output.add.name}.bias", moved))
