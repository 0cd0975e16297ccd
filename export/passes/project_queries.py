"""Apply the linear layer of keys and values to the few queries of an attention instead, as in a last layer.

If the head reads the class token alone (`prune_unread_rows`), the attention of the last layer has one query. Its layer
of keys and values still has a row for each token. Products are associative: with tokens X (L, C), columns W and b of
the layer for the keys or values of a head, queries Q (R, D), and weights A (R, L) that sum to 1 for each query,

    Q (X W + b)^T = (Q W^T) X^T + Q b^T    of keys; a softmax over the tokens ignores Q b^T, equal for all of them
    A (X W + b) = (A X) W + b              of values

This is `project_tokens` for linear layers. The layer computes keys, values and often the queries, whose columns are
applied to the rows that are read. The operators between the layer and the products may be any that move elements:
they are run with numbered elements, as in `gather_rows`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    only_softmax_reads,
    remove_unused,
    replace_value,
    required_input,
    sizes_of_image,
    sums_to_one,
)
from edgevit.export.linear import Linear, linear_at
from edgevit.export.moves import follow, images_of
from edgevit.export.product_inserter import ProductInserter
from edgevit.types import Array

MIN_SAVED_MACS = 5_000_000  # per image; the operators that are added take as long as some 3 million
_RANK = 3  # of tokens (N, L, C)


def project_queries(model: ir.Model, *, min_saved_macs: int = MIN_SAVED_MACS) -> None:
    """Replace each linear layer on tokens of which only products with few queries, and single rows, are read."""
    for node in list(model.graph):
        layer = linear_at(node)
        found = None if layer is None else _reads(layer)
        if layer is not None and found and _saved_macs(layer, found) >= min_saved_macs:
            # Rows first: they may be the queries of a product, which is replaced.
            for number, read in enumerate(sorted(found, key=lambda read: isinstance(read, _Product))):
                _Rewrite(layer, f"{layer.output.name}_of_queries_{number}", model.graph).apply(read)
    remove_unused(model)


@dataclass(frozen=True, slots=True)
class _Row:
    """A read of some columns of one token, in their order."""

    node: ir.Node
    index: int  # of the value among the node's inputs
    token: int
    columns: Array  # (outputs,)


@dataclass(frozen=True, slots=True)
class _Product:
    """A MatMul of queries, or of their weights, with keys (N, [heads,] D, L) or values (N, [heads,] L, D)."""

    node: ir.Node
    has_keys: bool
    columns: Array  # ([heads,] D)
    tokens: int
    width: int  # of a token

    @property
    def left(self) -> ir.Value:
        return required_input(self.node)

    @property
    def rows(self) -> int:
        return sizes_of_image(self.left)[-2]

    @property
    def macs(self) -> int:
        """Return the multiply-adds per image that take the place of the layer's and this product's."""
        heads = math.prod(self.columns.shape[:-1])
        return self.rows * self.width * (self.columns.size + heads * self.tokens)

    @property
    def macs_before(self) -> int:
        return self.rows * self.tokens * self.columns.size


def _saved_macs(layer: Linear, reads: list[_Row | _Product]) -> int:
    """Return the multiply-adds per image that are saved; those of single rows are few, and not counted."""
    inputs, outputs = layer.weight.shape
    before = sizes_of_image(layer.output)[0] * inputs * outputs
    products = [read for read in reads if isinstance(read, _Product)]
    saved: int = before + sum(read.macs_before - read.macs for read in products)
    return saved


def _reads(layer: Linear) -> list[_Row | _Product] | None:
    """Return the reads of a layer's output behind the operators that move it; None if there are other reads."""
    shape = layer.source.shape
    if shape is None or len(shape) != _RANK or len(sizes_of_image(layer.output)) != _RANK - 1:
        return None
    sizes = (images_of(layer.source), *sizes_of_image(layer.output))
    moved = follow(layer.output, np.arange(math.prod(sizes)).reshape(sizes))
    found: list[_Row | _Product] = []
    for value, numbers in moved.items():
        if value.is_graph_output():
            return None
        for use in value.uses():
            if use.node.outputs[0] in moved:
                continue
            read = _read(use.node, use.idx, numbers, moved[layer.output], layer)
            if read is None:
                return None
            found.append(read)
    return found if any(isinstance(read, _Product) for read in found) else None


def _read(node: ir.Node, index: int, moved: Array, numbers: Array, layer: Linear) -> _Row | _Product | None:
    images, tokens, outputs = numbers.shape
    if moved.ndim < 3 or moved.shape[0] != images:
        return None
    first = moved[0]
    if not np.array_equal(moved, first + tokens * outputs * np.arange(images).reshape(-1, *[1] * first.ndim)):
        return None
    token, column = np.divmod(first, outputs)
    if (token == token.flat[0]).all():
        return _Row(node, index, int(token.flat[0]), column.ravel())
    if node.op_type != "MatMul" or node.domain or index != 1:
        return None
    return _product(node, token, column, tokens, layer)


def _product(node: ir.Node, token: Array, column: Array, tokens: int, layer: Linear) -> _Product | None:
    """Return the product with keys or values whose elements are of these tokens and columns."""
    every = np.arange(tokens)
    for has_keys, axis in ((True, -1), (False, -2)):
        columns = np.take(column, 0, axis)
        in_order = token.shape[axis] == tokens and np.array_equal(
            token, np.broadcast_to(np.expand_dims(every, () if has_keys else (1,)), token.shape)
        )
        if not in_order or not np.array_equal(column, np.broadcast_to(np.expand_dims(columns, axis), column.shape)):
            continue
        found = _Product(node, has_keys, columns, tokens, layer.weight.shape[0])
        rows = sizes_of_image(found.left)
        is_aligned = len(rows) == columns.ndim + 1 and rows[:-2] == columns.shape[:-1]
        return found if is_aligned and (has_keys or layer.bias is None or sums_to_one(found.left)) else None
    return None


class _Rewrite:
    """Replaces one read of a layer's output."""

    def __init__(self, layer: Linear, name: str, graph: ir.Graph) -> None:
        self._layer, self._name, self._graph = layer, name, graph

    def apply(self, read: _Row | _Product) -> None:
        insert = ProductInserter(read.node, self._layer.product, self._name, self._graph)
        if isinstance(read, _Row):
            read.node.replace_input_with(read.index, self._row(read, insert))
        else:
            value = self._scores(read, insert) if read.has_keys else self._pooled(read, insert)
            replace_value(read.node.outputs[0], value)

    def _row(self, read: _Row, insert: ProductInserter) -> ir.Value:
        """Return the columns of one token in the shape of the value that was read."""
        old = read.node.inputs[read.index]
        assert old is not None
        token = insert.gather("token", self._layer.source, read.token)
        row = insert.product("row", token, insert.constant("weight", self._layer.weight[:, read.columns]))
        if self._layer.bias is not None:
            row = insert.add(row, insert.constant("bias", self._layer.bias[read.columns]))
        return insert.reshape("row_shape", row, *sizes_of_image(old))

    def _scores(self, read: _Product, insert: ProductInserter) -> ir.Value:
        """Return (Q W^T) X^T + Q b^T."""
        layer, heads, width = self._layer, read.columns.shape[:-1], self._layer.weight.shape[0]
        queries = insert.product("queries", read.left, insert.constant("weight", layer.weight.T[read.columns]))
        if heads:
            queries = insert.reshape("heads_in_rows", queries, math.prod(heads) * read.rows, width)
        scores = insert.product("scores", queries, insert.transpose("tokens", layer.source))
        if heads:
            scores = insert.reshape("heads", scores, *heads, read.rows, read.tokens)
        if layer.bias is None or only_softmax_reads(read.node.outputs[0]):
            return scores
        column = insert.constant("bias", layer.bias[read.columns][..., np.newaxis])
        return insert.add(scores, insert.product("offsets", read.left, column))

    def _pooled(self, read: _Product, insert: ProductInserter) -> ir.Value:
        """Return (A X) W + b."""
        layer, heads, width = self._layer, read.columns.shape[:-1], self._layer.weight.shape[0]
        weights = read.left
        if heads:
            weights = insert.reshape("heads_in_rows", weights, math.prod(heads) * read.rows, read.tokens)
        pooled = insert.product("pooled", weights, layer.source)
        if heads:
            pooled = insert.reshape("heads", pooled, *heads, read.rows, width)
        columns = np.swapaxes(layer.weight.T[read.columns], -1, -2)  # ([heads,] width, D)
        values = insert.product("values", pooled, insert.constant("weight", columns))
        if layer.bias is None:
            return values
        return insert.add(values, insert.constant("bias", layer.bias[read.columns][..., np.newaxis, :]))
