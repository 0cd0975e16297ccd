"""Compute parallel small networks as one: move each Split behind the layers that all its parts go through.

f(Split(x)) = Split(f(x)) for an elementwise f, and linear layers of the parts are one layer of the whole:

    [x1 W1 + b1, x2 W2 + b2] = [x1, x2] diag(W1, W2) + [b1, b2].

The zeros beside the blocks are read and multiplied, but the time of a layer of few rows is mostly that of starting it.
`merge_linear` makes the Splits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    int64_initializer,
    only_consumer,
    remove_unused,
    replace_by_split,
)
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_at
from edgevit.types import Array

_MAX_GROWTH = 2  # of the weights, by the zeros
_ELEMENTWISE = {"Relu", "LeakyRelu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"}


def merge_branches(model: ir.Model) -> None:
    """Move each Split of few rows along the last axis behind the layers that follow on all its parts."""
    for node in list(model.graph):
        split = node if _splits_few_rows(node) else None
        while split is not None:
            split = _moved(split, model.graph)
    remove_unused(model)


def _splits_few_rows(node: ir.Node) -> bool:
    if node.op_type != "Split" or len(node.inputs) < 2 or constant(node.inputs[1]) is None:
        return False
    whole = node.inputs[0]
    rank = len(whole.shape or ()) if whole is not None else 0
    return rank > 0 and whole is not None and _axis(node) % rank == rank - 1 and has_few_rows(whole)


def _axis(split: ir.Node) -> int:
    return split.attributes.get_int("axis", 0)


def _moved(split: ir.Node, graph: ir.Graph) -> ir.Node | None:
    """Move a Split behind the next layer of its parts and return the new Split; None if the parts differ there."""
    readers = [only_consumer(part) for part in split.outputs]
    nodes = [reader for reader in readers if reader is not None]
    if len(nodes) < len(readers) or len({_operator(node) for node in nodes}) > 1:
        return None
    if nodes[0].op_type in _ELEMENTWISE and not nodes[0].domain:
        return _behind_elementwise(split, nodes, graph)
    layers = [layer for node in nodes if (layer := linear_at(node)) is not None]
    reads_parts = all(layer.source is part for layer, part in zip(layers, split.outputs, strict=False))
    if len(layers) < len(nodes) or not reads_parts or any(layer.output.is_graph_output() for layer in layers):
        return None
    return _behind_linear(split, layers, graph)


def _operator(node: ir.Node) -> tuple[object, ...]:
    attributes = {name: attribute.value for name, attribute in node.attributes.items() if name != "transB"}
    return node.domain, node.op_type, *sorted(attributes.items())


def _behind_elementwise(split: ir.Node, nodes: list[ir.Node], graph: ir.Graph) -> ir.Node:
    first, whole = _first(nodes, graph), split.inputs[0]
    merged = ir.node(first.op_type, [whole], first.attributes, name=f"{first.name}_merged")
    graph.insert_before(first, merged)
    if whole is not None:
        copy_shape_and_type(merged.outputs[0], whole)
    parts = [node.outputs[0] for node in nodes]
    return replace_by_split(parts, merged.outputs[0], split.inputs[1], axis=-1, before=first, graph=graph)


def _behind_linear(split: ir.Node, layers: list[Linear], graph: ir.Graph) -> ir.Node | None:
    weight, whole = _block_diagonal([layer.weight for layer in layers]), split.inputs[0]
    if whole is None or weight.size > _MAX_GROWTH * sum(layer.weight.size for layer in layers):
        return None
    first = _first([layer.product for layer in layers], graph)
    merged = insert_linear(
        whole,
        weight,
        np.concatenate([layer.bias_or_zeros for layer in layers]),
        op_type=first.op_type,
        name=f"{first.name}_merged",
        before=first,
        graph=graph,
    )
    sizes = int64_initializer(graph, f"{first.name}_merged.sizes", [layer.weight.shape[1] for layer in layers])
    parts = [layer.output for layer in layers]
    return replace_by_split(parts, merged, sizes, axis=-1, before=first, graph=graph)


def _first(nodes: list[ir.Node], graph: ir.Graph) -> ir.Node:
    """Return the node that stands first in the graph: others may read its output before the next of the nodes."""
    return next(node for node in graph if node in nodes)


def _block_diagonal(weights: list[Array]) -> Array:
    rows, columns = (np.cumsum([0, *sizes]) for sizes in zip(*(weight.shape for weight in weights), strict=True))
    whole = np.zeros((rows[-1], columns[-1]), weights[0].dtype)
    for weight, row, column in zip(weights, rows, columns, strict=False):
        whole[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
    return whole
