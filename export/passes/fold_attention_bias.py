"""Fold the key and value biases of attention into neighboring layers.

In softmax(q k^T) v, linear layers compute q, k and v, which Reshape and Transpose nodes split into heads.

* The bias of k adds the same value to all scores of a query, which does not change the softmax: it is removed.
* The bias of v passes through unchanged, because the weights of a query sum to one. It is folded into the bias of the
  linear layer that follows: b + b_v W.
* The bias of q is added after the split, to the heads.

TensorRT-RTX 1.7 writes k and v of a joint matmul without a bias directly to the buffers that its attention reads. With
a bias before the split it copies q, k and v, with one kernel each.
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
    is_over_last_axis,
    only_consumer,
    remove_unused,
    replace_value,
)
from edgevit.export.moves import run_move
from edgevit.types import Array

# Single heads wider than this lose fusion: 96 and 192 channels do; several heads of 96 channels stay fused.
_MAX_SINGLE_HEAD = 64
_BATCH = 2  # example size of a dynamic batch, to follow layout operators with arrays


@dataclass(frozen=True, slots=True)
class Part:
    """One of q, k and v, from the Add of its bias to the matmul that reads it."""

    add: ir.Node
    split: ir.Node | None  # divides the channels of `add` into q, k and v
    value: ir.Value  # (..., tokens, channels)
    bias: Array  # (channels,)
    path: tuple[ir.Node, ...]  # nodes between `value` and the matmul


@dataclass(frozen=True, slots=True)
class Output:
    """The linear layer after an attention, and the layout operators before it."""

    path: tuple[ir.Node, ...]
    matmul: ir.Node
    add: ir.Node


def fold_attention_bias(model: ir.Model) -> None:
    """Move the biases of each attention whose q, k, v and output come from linear layers with a bias."""
    for node in list(model.graph):
        if node.op_type == "Softmax" and is_over_last_axis(node):
            _fold(node, model.graph)
    remove_unused(model)


def _fold(softmax: ir.Node, graph: ir.Graph) -> None:
    scores, product = _scores(softmax.inputs[0]), only_consumer(softmax.outputs[0])
    if scores is None or product is None or product.op_type != "MatMul" or product.inputs[0] is not softmax.outputs[0]:
        return
    q, k, v = (_part(value) for value in (*scores.inputs, product.inputs[1]))
    output = _output(product)
    if q is None or k is None or v is None or output is None or not _are_only_consumers((q, k, v)):
        return
    transpose = next((node for node in q.path if node.op_type == "Transpose"), None)
    if transpose is None or _is_wide_single_head(q):
        return
    try:
        heads, shift = _heads(q, transpose), _shift(v, product, output)
        is_uniform = _is_uniform_over_tokens(k)
    except ValueError:  # the shapes do not match
        return
    if shift is None or not is_uniform:
        return
    _add_to_heads(q, heads, transpose, graph)
    _add_to_layer(output, shift, graph)
    for add in {part.add for part in (q, k, v)}:
        unbiased = next(value for value in add.inputs if value is not None and constant(value) is None)
        replace_value(add.outputs[0], unbiased)


# Matching


def _scores(value: ir.Value | None) -> ir.Node | None:
    """Return the matmul q k^T from which `value` comes through scales, masks and position biases; else None."""
    node = value.producer() if value is not None else None
    if value is None or node is None or only_consumer(value) is None:
        return None
    if node.op_type == "MatMul":
        return node
    if node.op_type == "Add" or _is_scaling(node):
        return next((found for operand in node.inputs if (found := _scores(operand)) is not None), None)
    return None


def _is_scaling(node: ir.Node) -> bool:
    """Whether the node multiplies or divides by a constant scalar."""
    factor = constant(node.inputs[1]) if node.op_type in ("Div", "Mul") else None
    return factor is not None and factor.size == 1


def _part(value: ir.Value | None) -> Part | None:
    """Return the part whose path ends at `value`, an input of a matmul of the attention."""
    path: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and only_consumer(value) is not None:
        if node.op_type == "Split" and node.inputs[0] is not None:
            return _biased(node.inputs[0].producer(), node, value, path)
        if node.op_type == "Add":
            return _biased(node, None, value, path)
        if not (_is_layout(node) or _is_scaling(node)):
            return None
        path.insert(0, node)
        value = node.inputs[0]
    return None


def _is_layout(node: ir.Node) -> bool:
    return node.op_type == "Transpose" or (node.op_type == "Reshape" and constant(node.inputs[1]) is not None)


def _biased(add: ir.Node | None, split: ir.Node | None, value: ir.Value, path: Sequence[ir.Node]) -> Part | None:
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
    if not isinstance(width, int) or (split is not None and not _splits_last_axis(split, add)):
        return None
    return Part(add, split, value, bias[start : start + width], tuple(path))


def _splits_last_axis(split: ir.Node, add: ir.Node) -> bool:
    """Whether the Split is the only consumer of the sum and divides its last axis."""
    last = len(add.outputs[0].shape or ()) - 1
    return only_consumer(add.outputs[0]) is split and split.attributes.get_int("axis", 0) in (-1, last)


def _bias_of_layer(add: ir.Node | None) -> Array | None:
    """Return the bias (channels,) that the node adds to a matmul with constant weights; else None."""
    if add is None or add.op_type != "Add":
        return None
    for unbiased, bias in (add.inputs, add.inputs[::-1]):
        vector, node = constant(bias), unbiased.producer() if unbiased is not None else None
        weights = _matrix(node) if node is not None else None
        if vector is not None and weights is not None and vector.shape == weights.shape[1:]:
            return vector
    return None


def _matrix(node: ir.Node) -> Array | None:
    """Return the constant matrix (inputs, outputs) that a MatMul multiplies by; None for any other node."""
    weights = constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return weights if weights is not None and weights.ndim == 2 else None


def _output(product: ir.Node) -> Output | None:
    """Return the linear layer that reads the attention's result; None if there is none or it has no bias."""
    path: list[ir.Node] = []
    node = only_consumer(product.outputs[0])
    while node is not None and _is_layout(node):
        path.append(node)
        node = only_consumer(node.outputs[0])
    if node is None or _matrix(node) is None:
        return None
    add = only_consumer(node.outputs[0])
    return Output(tuple(path), node, add) if add is not None and _bias_of_layer(add) is not None else None


def _is_wide_single_head(q: Part) -> bool:
    heads = q.path[0].outputs[0].shape if q.path else None  # (..., tokens, heads, channels)
    return heads is not None and heads[-1] == len(q.bias) > _MAX_SINGLE_HEAD


def _are_only_consumers(parts: Sequence[Part]) -> bool:
    """Whether q, k and v are the only outputs of their Split."""
    read = {part.value for part in parts}
    return all(part.split is None or read.issuperset(part.split.outputs) for part in parts)


# Rewriting


def _follow(array: Array, path: Sequence[ir.Node]) -> Array:
    """Apply the layout operators and scales of `path` to an array. Raises ValueError if the shapes do not match."""
    for node in path:
        source = node.inputs[0]
        if source is not None and _is_layout(node):
            moved = run_move(node, {source: array})
            if moved is None:
                raise ValueError(f"{node.name} does not fit an array of the shape {array.shape}")
            array = moved[0]
        else:
            factor = np.asarray(constant(node.inputs[1])).item()
            array = array / factor if node.op_type == "Div" else array * factor
    return array


def _at_all_tokens(part: Part) -> Array:
    """Broadcast the bias to all tokens."""
    assert part.value.shape is not None
    shape = [dim if isinstance(dim, int) else _BATCH for dim in part.value.shape]
    return np.broadcast_to(part.bias, shape)


def _heads(q: Part, transpose: ir.Node) -> Array:
    """Return the bias of q after the Transpose that splits it into heads. Raises ValueError if the shapes do not match.

    Axes along which it is constant have the length 1.
    """
    heads = _follow(_at_all_tokens(q), q.path[: q.path.index(transpose) + 1])
    for axis in range(heads.ndim):
        first = heads.take([0], axis)
        heads = first if np.all(heads == first) else heads
    return heads


def _is_uniform_over_tokens(k: Part) -> bool:
    """Whether the bias of k (..., channels, tokens), after its path, is the same for all tokens.

    Raises ValueError if the shapes do not match.
    """
    operand = _follow(_at_all_tokens(k), k.path)
    return bool(np.all(operand == operand[..., :1]))


def _shift(v: Part, product: ir.Node, output: Output) -> Array | None:
    """Return the vector (channels,) that v's bias adds to the output layer's input; None if it is not a vector.

    Raises ValueError if the shapes do not match.
    """
    operand = _follow(_at_all_tokens(v), v.path)  # (..., tokens, channels)
    if not np.all(operand == operand[..., :1, :]):
        return None
    added = _follow(_at_all_queries(operand[..., :1, :], product.outputs[0]), output.path)
    vectors, weights = added.reshape(-1, added.shape[-1]), _matrix(output.matmul)
    is_one_vector = weights is not None and len(weights) == added.shape[-1] and np.all(vectors == vectors[0])
    return vectors[0] if is_one_vector else None


def _at_all_queries(row: Array, product: ir.Value) -> Array:
    """Broadcast a row (..., 1, channels) to the attention's result: to all queries, and to heads that share a v."""
    if product.shape is None:
        return row
    sizes = (1,) * (len(product.shape) - row.ndim) + row.shape
    known = [dim if isinstance(dim, int) else size for dim, size in zip(product.shape, sizes, strict=True)]
    return np.broadcast_to(row, (*known[:-1], row.shape[-1]))


def _add_to_heads(q: Part, heads: Array, transpose: ir.Node, graph: ir.Graph) -> None:
    """Add the bias of q, as `_heads` returns it, after the Transpose that splits it into heads."""
    value = transpose.outputs[0]
    add = ir.node("Add", [value, initializer(graph, f"{q.add.name}.query", heads)], name=f"{q.add.name}_query")
    copy_shape_and_type(add.outputs[0], value)
    graph.insert_after(transpose, add)
    for use in list(value.uses()):
        if use.node is not add:
            use.node.replace_input_with(use.idx, add.outputs[0])


def _add_to_layer(output: Output, shift: Array, graph: ir.Graph) -> None:
    """Add a constant shift of the output layer's input to the layer's bias."""
    weights = np.asarray(constant(output.matmul.inputs[1]))  # (channels, outputs)
    for index, value in enumerate(output.add.inputs):
        bias = constant(value)
        if bias is not None:
            moved = (bias + shift.astype(np.float64) @ weights).astype(bias.dtype)
            output.add.replace_input_with(index, initializer(graph, f"{output.add.name}.bias", moved))
