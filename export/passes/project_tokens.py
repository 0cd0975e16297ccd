"""Apply 1x1 convolutions of pixels to the few tokens that attend to the pixels instead.

Products are associative. With pixels X (C, H W), a convolution W X + b, the queries Q of a few tokens, and weights A of
the pixels that sum to 1 for each token:

    Q (W X + b) = (Q W) X + Q b        of keys; softmax over the pixels makes Q b, equal for all pixels, irrelevant
    A (W X + b)^T = (A X^T) W^T + b    of values

The convolution then has a row for each token instead of one for each pixel, and its output, a map, is never written. A
grouped convolution is computed head by head. With 8 or 16 tokens and 196 pixels, that is a fifth of the products of
Visual Transformers' tokenizers and projectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    only_consumer,
    only_softmax_reads,
    remove_unused,
    replace_value,
    required_input,
    sizes_of_image,
    sums_to_one,
)
from edgevit.export.macs import node_macs
from edgevit.export.product_inserter import ProductInserter
from edgevit.types import Array

_MAX_FRACTION = 0.5  # of the multiply-adds that may remain: products of activations are not in int8, convolutions are
_MAP = 4  # rank of (N, C, H, W)


def project_tokens(model: ir.Model) -> None:
    """Swap each pair of a 1x1 convolution and the product that alone reads its output, if that is far less work."""
    for node in list(model.graph):
        found = _attention(node)
        if found is not None and found.remaining_macs <= _MAX_FRACTION * found.macs:
            _Rewrite(found, model.graph).apply()
    remove_unused(model)


@dataclass(frozen=True, slots=True)
class _Attention:
    """A product of tokens with the output of a convolution, (N, [heads,] channels, pixels) or transposed."""

    product: ir.Node  # MatMul of the tokens and the pixels
    transpose: ir.Node | None  # of the pixels, if they are values
    conv: ir.Node
    heads: tuple[int, ...]  # (heads,), or () if the product has no axis of heads
    weight: Array  # (groups, outputs of a group, inputs of a group)
    bias: Array | None  # (outputs,)

    @property
    def tokens(self) -> ir.Value:
        return required_input(self.product)

    @property
    def pixels(self) -> ir.Value:
        return required_input(self.conv)

    @property
    def rows(self) -> int:
        return sizes_of_image(self.tokens)[-2]

    @property
    def pixel_count(self) -> int:
        return math.prod(sizes_of_image(self.pixels)[1:])

    @property
    def macs(self) -> int:
        return node_macs(self.conv) + node_macs(self.product)

    @property
    def remaining_macs(self) -> int:
        groups, _, inputs = self.weight.shape
        macs: int = self.rows * (self.weight.size + groups * inputs * self.pixel_count)
        return macs


def _attention(product: ir.Node) -> _Attention | None:
    """Return the product and its convolution; None if the node is none of these products."""
    if product.op_type != "MatMul" or product.domain or len(sizes_of_image(product.inputs[0])) < 2:
        return None
    value = product.inputs[1]
    transpose = _only_producer(value, "Transpose")
    if transpose is not None:
        value = transpose.inputs[0]
    reshape = _only_producer(value, "Reshape")
    conv = _only_producer(reshape.inputs[0], "Conv") if reshape is not None else None
    if reshape is None or conv is None or not _is_pointwise(conv):
        return None
    heads = _heads(conv, reshape)
    kernels, bias = constant(conv.inputs[1]), constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    groups = conv.attributes.get_int("group", 1) or 1
    if heads is None or kernels is None or _batch_and_heads(product.inputs[0]) != _batch_and_heads(product.inputs[1]):
        return None
    if transpose is None:
        is_aligned = math.prod(heads) == groups
    else:
        is_aligned = (not heads or heads == (groups,)) and _swaps_last_axes(transpose)
        is_aligned = is_aligned and (bias is None or sums_to_one(product.inputs[0]))
    if not is_aligned:
        return None
    weight = kernels.reshape(groups, -1, kernels.shape[1])
    return _Attention(product, transpose, conv, heads, weight, bias)


def _only_producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that computes a value, if it is of a type and the value is read once."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != op_type or node.domain or only_consumer(value) is None:
        return None
    return node


def _is_pointwise(conv: ir.Node) -> bool:
    """Whether a Conv multiplies each pixel of a map by constant weights."""
    if not has_constant_weights(conv) or len(sizes_of_image(conv.inputs[0])) != _MAP - 1:
        return False
    weight = constant(conv.inputs[1])
    strides, pads = conv.attributes.get_ints("strides", [1]), conv.attributes.get_ints("pads", [0])
    is_plain = set(strides or ()) <= {1} and set(pads or ()) <= {0}
    return weight is not None and weight.shape[2:] == (1, 1) and is_plain


def _heads(conv: ir.Node, reshape: ir.Node) -> tuple[int, ...] | None:
    """Return (heads,) or () if the map becomes (N, [heads,] channels, pixels); None if not."""
    before, after = sizes_of_image(conv.outputs[0]), sizes_of_image(reshape.outputs[0])
    if len(before) != _MAP - 1 or len(after) not in (2, 3):
        return None
    heads = after[:-2]
    keeps = math.prod(heads) * after[-2] == before[0] and after[-1] == before[1] * before[2]
    return heads if keeps else None


def _swaps_last_axes(transpose: ir.Node) -> bool:
    rank = len(sizes_of_image(transpose.outputs[0])) + 1
    order = list(range(rank))
    return list(transpose.attributes.get_ints("perm", []) or []) == [*order[:-2], order[-1], order[-2]]


def _batch(value: ir.Value | None) -> int | ir.SymbolicDim | None:
    return value.shape[0] if value is not None and value.shape else None


def _batch_and_heads(value: ir.Value | None) -> tuple[object, ...]:
    return (_batch(value), *sizes_of_image(value)[:-2])


class _Rewrite:
    """Replaces one product and its convolution."""

    def __init__(self, found: _Attention, graph: ir.Graph) -> None:
        name = f"{found.conv.outputs[0].name}_of_tokens"
        self._found, self._insert = found, ProductInserter(found.product, found.conv, name, graph)

    def apply(self) -> None:
        """Insert the other order of the products before the old one, whose output it replaces."""
        output = self._found.product.outputs[0]
        replace_value(output, self._scores() if self._found.transpose is None else self._pooled())

    def _scores(self) -> ir.Value:
        """Return (Q W) X + Q b."""
        found, weight = self._found, self._found.weight
        heads = found.heads
        queries = self._insert.product(
            "queries", found.tokens, self._insert.constant("weight", weight.reshape(*heads, *weight.shape[1:]))
        )
        scores = self._insert.product("scores", queries, self._pixels())
        if found.bias is None or only_softmax_reads(found.product.outputs[0]):
            return scores
        column = self._insert.constant("bias", found.bias.reshape(*heads, -1, 1))
        return self._insert.add(scores, self._insert.product("offsets", found.tokens, column))

    def _pooled(self) -> ir.Value:
        """Return (A X^T) W^T + b."""
        found, weight = self._found, self._found.weight
        groups, outputs, inputs = weight.shape
        pooled = self._insert.product(
            "pooled", found.tokens, self._insert.transpose("pixels_transposed", self._pixels())
        )
        splits = not found.heads and groups > 1  # the groups of the convolution become heads for its product
        heads = (groups,) if splits else found.heads
        if splits:
            pooled = self._insert.reshape("groups", pooled, found.rows, groups, inputs)
            pooled = self._insert.permute("groups_first", pooled, [0, 2, 1, 3])
        swapped = np.swapaxes(weight, 1, 2).reshape(*heads, inputs, outputs)
        result = self._insert.product("values", pooled, self._insert.constant("weight", swapped))
        if found.bias is not None:
            row = (*heads, 1, outputs) if heads else (outputs,)
            result = self._insert.add(result, self._insert.constant("bias", found.bias.reshape(row)))
        if splits:
            result = self._insert.permute("groups_last", result, [0, 2, 1, 3])
            result = self._insert.reshape("channels", result, found.rows, groups * outputs)
        return result

    def _pixels(self) -> ir.Value:
        """Return the input of the convolution as (N, [heads,] channels, pixels)."""
        channels = self._found.weight.shape[0] * self._found.weight.shape[2] // math.prod(self._found.heads)
        return self._insert.reshape("pixels", self._found.pixels, *self._found.heads, channels, self._found.pixel_count)
