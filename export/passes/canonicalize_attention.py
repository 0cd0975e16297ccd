"""Rewrite attention into the form that TensorRT fuses into one kernel in fp16.

The form is softmax(q k^T) v, with the softmax over the last axis and the same number of channels in q, k and v: a
multiple of 8, at least 16.

* Transposed attention is transposed back: V^T softmax_over_rows(A B) = (softmax_over_columns(B^T A^T) V)^T.
* q and k that are narrower are padded with zeros, which do not change their product.
* v that is narrower is padded too, and the result is cut: its other channels are zero. TensorRT fuses 12 or 20 channels
  as well, but pads and cuts them in kernels of their own.
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
    insert_slice,
    int64_initializer,
    only_consumer,
    remove_unused,
    replace_value,
    static_size,
    swap_last_axes,
    swaps_last_axes,
    with_swapped_axes,
)

_MAX_PADDING_FACTOR = 2  # of q and k to v; beyond this the matmuls of zeros cost more than the fusion saves
_MIN_CHANNELS = 6  # narrower v would be zeros mostly
_MIN_WIDTH, _MULTIPLE = 16, 8  # channels of heads that TensorRT fuses without padding them


@dataclass(frozen=True, slots=True)
class Attention:
    """The three nodes of an attention; each is the only consumer of the previous one."""

    scores: ir.Node
    softmax: ir.Node
    product: ir.Node  # with the values


def canonicalize_attention(model: ir.Model) -> None:
    """Transpose transposed attention, and pad narrow queries, keys and values."""
    for node in list(model.graph):
        if (attention := _attention_around(node)) is not None:
            _transpose(attention, model.graph)
    for node in list(model.graph):
        if (attention := _attention_around(node)) is not None:
            _pad(attention, model.graph)
    remove_unused(model)


def _attention_around(softmax: ir.Node) -> Attention | None:
    if softmax.op_type != "Softmax" or softmax.inputs[0] is None:
        return None
    scores, product = softmax.inputs[0].producer(), only_consumer(softmax.outputs[0])
    if scores is None or product is None or not scores.op_type == product.op_type == "MatMul":
        return None
    values = (*scores.inputs, *product.inputs, *product.outputs, softmax.outputs[0])
    ranks = {0 if value is None or value.shape is None else len(value.shape) for value in values}
    if only_consumer(scores.outputs[0]) is not softmax or len(ranks) > 1 or min(ranks) < 3:
        return None
    return Attention(scores, softmax, product)


def _transpose(attention: Attention, graph: ir.Graph) -> None:
    """Transpose an attention whose weights are the right factor and are normalized along the second-to-last axis."""
    scores, softmax, product = attention.scores, attention.softmax, attention.product
    weights, result = softmax.outputs[0], product.outputs[0]
    rank, width = len(weights.shape or ()), static_size(product.inputs[0], -2)
    if softmax.attributes.get_int("axis", -1) not in (-2, rank - 2) or product.inputs[1] is not weights:
        return
    if width is None or width < _MIN_CHANNELS:
        return
    swap = functools.partial(swap_last_axes, before=product, graph=graph)
    first, second, values = (swap(value) for value in (*scores.inputs, product.inputs[0]))
    node = ir.node("MatMul", [second, first], name=scores.name)
    logits = insert(node, before=product, graph=graph, like=weights, shape=with_swapped_axes(weights))
    node = ir.node("Softmax", [logits], {"axis": -1}, name=softmax.name)
    transposed = insert(node, before=product, graph=graph, like=weights, shape=logits.shape)
    node = ir.node("MatMul", [transposed, values], name=product.name)
    mixture = insert(node, before=product, graph=graph, like=result, shape=with_swapped_axes(result))
    replace_value(result, swap(mixture))


def _pad(attention: Attention, graph: ir.Graph) -> None:
    """Pad q, k and v with zeros to a width that TensorRT fuses without copies."""
    scores, softmax, product = attention.scores, attention.softmax, attention.product
    rank = len(softmax.outputs[0].shape or ())
    keys, values = static_size(scores.inputs[0], -1), static_size(product.inputs[1], -1)
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1) or product.inputs[0] is not softmax.outputs[0]:
        return
    if keys is None or values is None or min(keys, values) < _MIN_CHANNELS:
        return
    width = max(-(-values // _MULTIPLE) * _MULTIPLE, _MIN_WIDTH)
    if not keys <= width <= max(_MAX_PADDING_FACTOR * keys, _MIN_WIDTH):
        return
    shares_keys = _are_transposed(scores.inputs[1], product.inputs[1])
    _pad_input(scores, 0, rank - 1, width, graph)
    _pad_input(scores, 1, rank - 2, width, graph)
    if values < width:
        if shares_keys:
            product.replace_input_with(1, swap_last_axes(scores.inputs[1], before=product, graph=graph))
        else:
            _pad_input(product, 1, rank - 1, width, graph)
        _cut_output(product, values, width, graph)


def _pad_input(node: ir.Node, index: int, axis: int, size: int, graph: ir.Graph) -> None:
    """Append zeros to an input of a MatMul, so that an axis has `size` elements."""
    value = node.inputs[index]
    assert value is not None and value.shape is not None
    missing = size - (static_size(value, axis) or 0)
    if not missing:
        return
    array = constant(value)
    if array is not None:
        widths = [(0, missing if each == axis else 0) for each in range(array.ndim)]
        node.replace_input_with(index, initializer(graph, f"{value.name}_padded", np.pad(array, widths)))
        return
    ends = [0] * (2 * len(value.shape))
    ends[len(value.shape) + axis] = missing
    pad = ir.node("Pad", [value, int64_initializer(graph, f"{node.name}.pads_{index}", ends)])
    shape = ir.Shape([*value.shape[:axis], size, *value.shape[axis + 1 :]])
    node.replace_input_with(index, insert(pad, before=node, graph=graph, like=value, shape=shape))


def _are_transposed(keys: ir.Value | None, values: ir.Value | None) -> bool:
    """Whether the values are the transposed keys, so that both can be padded once."""
    node = values.producer() if values is not None else None
    return node is not None and swaps_last_axes(node) and node.inputs[0] is keys


def _cut_output(product: ir.Node, channels: int, width: int, graph: ir.Graph) -> None:
    """Compute the product of values that are padded to `width`, and keep the first channels."""
    result = product.outputs[0]
    assert result.shape is not None
    wide = insert(
        ir.node("MatMul", product.inputs, name=product.name),
        before=product,
        graph=graph,
        like=result,
        shape=ir.Shape([*result.shape[:-1], width]),
    )
    kept = {len(result.shape) - 1: (0, channels)}
    replace_value(result, insert_slice(wide, kept, before=product, graph=graph, name=f"{product.name}_Slice"))
