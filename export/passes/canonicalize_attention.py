"""Attention in the one form that TensorRT's compiler makes a single kernel of, in half precision.

That form is softmax(q k^T) v with the softmax over the last axis and q and k as wide as v. Two things bring it about:

* What is computed transposed is turned: V^T softmax_over_rows(A B) = (softmax_over_columns(B^T A^T) V)^T.
* q and k that are narrower than v are padded with zeros, which add nothing to their products.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgevit.export.ir_helpers import int64_initializer, only_consumer, remove_unused, replace_value

_WIDEST = 2  # times: products of mostly zeros would cost more than the kernels they spare
_NARROWEST = 12  # channels a head: of 12 it fuses, of 6 and 8 it does not, and turning it costs two copies


@dataclass(frozen=True, slots=True)
class Attention:
    """Three nodes, of which each alone reads the one before it."""

    scores: ir.Node
    softmax: ir.Node
    mixed: ir.Node


def canonicalize_attention(model: ir.Model) -> None:
    for node in list(model.graph):
        if (attention := _attention_around(node)) is not None:
            _turn(attention, model.graph)
    for node in list(model.graph):
        if (attention := _attention_around(node)) is not None:
            _widen(attention, model.graph)
    remove_unused(model)


def _attention_around(softmax: ir.Node) -> Attention | None:
    if softmax.op_type != "Softmax" or softmax.inputs[0] is None:
        return None
    scores, mixed = softmax.inputs[0].producer(), only_consumer(softmax.outputs[0])
    if scores is None or mixed is None or not scores.op_type == mixed.op_type == "MatMul":
        return None
    values = (*scores.inputs, *mixed.inputs, *mixed.outputs, softmax.outputs[0])
    ranks = {0 if value is None or value.shape is None else len(value.shape) for value in values}
    if only_consumer(scores.outputs[0]) is not softmax or len(ranks) > 1 or min(ranks) < 3:
        return None
    return Attention(scores, softmax, mixed)


def _turn(attention: Attention, graph: ir.Graph) -> None:
    """Transposes an attention whose weights are the second factor, normalised along the last axis but one."""
    scores, softmax, mixed = attention.scores, attention.softmax, attention.mixed
    weights, result = softmax.outputs[0], mixed.outputs[0]
    rank, width = len(weights.shape or ()), _dim(mixed.inputs[0], -2)
    if softmax.attributes.get_int("axis", -1) not in (-2, rank - 2) or mixed.inputs[1] is not weights:
        return
    if width is None or width < _NARROWEST:
        return
    first, second, values = (_swap(value, mixed, graph) for value in (*scores.inputs, mixed.inputs[0]))
    logits = _add(ir.node("MatMul", [second, first], name=scores.name), _swapped(weights), weights, mixed, graph)
    turned = _add(ir.node("Softmax", [logits], {"axis": -1}, name=softmax.name), logits.shape, weights, mixed, graph)
    mixture = _add(ir.node("MatMul", [turned, values], name=mixed.name), _swapped(result), result, mixed, graph)
    replace_value(result, _swap(mixture, mixed, graph))


def _widen(attention: Attention, graph: ir.Graph) -> None:
    """Pads q and k with zeros to the width of v."""
    scores, softmax, mixed = attention.scores, attention.softmax, attention.mixed
    rank = len(softmax.outputs[0].shape or ())
    narrow, wide = _dim(scores.inputs[0], -1), _dim(mixed.inputs[1], -1)
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1) or mixed.inputs[0] is not softmax.outputs[0]:
        return
    if narrow is None or wide is None or not narrow < wide <= _WIDEST * narrow:
        return
    for index, axis in enumerate((rank - 1, rank - 2)):  # q (…, L, d) and k transposed (…, d, L)
        value = scores.inputs[index]
        assert value is not None and value.shape is not None
        ends = [0] * (2 * rank)
        ends[rank + axis] = wide - narrow
        pad = ir.node("Pad", [value, int64_initializer(graph, f"{scores.name}.pads_{index}", ends)])
        shape = ir.Shape([*value.shape[:axis], wide, *value.shape[axis + 1 :]])
        scores.replace_input_with(index, _add(pad, shape, value, scores, graph))


def _swap(value: ir.Value | None, place: ir.Node, graph: ir.Graph) -> ir.Value:
    """The value with its last two axes swapped, in front of the node `place`."""
    assert value is not None and value.shape is not None
    *leading, rows, columns = range(len(value.shape))
    node = ir.node("Transpose", [value], {"perm": [*leading, columns, rows]})
    return _add(node, _swapped(value), value, place, graph)


def _swapped(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    *leading, rows, columns = value.shape
    return ir.Shape([*leading, columns, rows])


def _add(node: ir.Node, shape: ir.Shape | None, like: ir.Value, place: ir.Node, graph: ir.Graph) -> ir.Value:
    """Puts the node in front of `place`; its output has this shape and the type of `like`."""
    graph.insert_before(place, node)
    node.outputs[0].shape = shape
    if like.type is not None:
        node.outputs[0].type = like.type
    return node.outputs[0]


def _dim(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis, where it is known."""
    dim = value.shape[axis] if value is not None and value.shape is not None else None
    return dim if isinstance(dim, int) else None
