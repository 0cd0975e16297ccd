"""Compute linear layers that read the same value as one, and split its output.

x [W1 W2] + [b1 b2] = [x W1 + b1, x W2 + b2]. Of layers with few rows the time is that of starting them and of reading
their weights; one layer starts once.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    initializer,
    insert,
    int64_initializer,
    remove_unused,
    replace_value,
)
from edgevit.export.linear import Linear, linear_at

MAX_ROWS = 16  # of x; layers with more are bound by their multiplications


def merge_linear(model: ir.Model) -> None:
    """Merge the linear layers of the same kind that read one value of few rows."""
    layers: dict[tuple[ir.Value, str], list[Linear]] = {}
    for node in model.graph:
        layer = linear_at(node)
        if layer is not None and _rows(layer) <= MAX_ROWS and not layer.output.is_graph_output():
            layers.setdefault((layer.source, node.op_type), []).append(layer)
    for group in layers.values():
        if len(group) > 1:
            _merge(group, model.graph)
    remove_unused(model)


def _rows(layer: Linear) -> int:
    """Return the number of rows of x per image; more than any limit if it is unknown."""
    shape = layer.source.shape
    if shape is None or any(not isinstance(size, int) for size in shape[1:]):
        return MAX_ROWS + 1
    return int(np.prod([size for size in shape[1:-1] if isinstance(size, int)], dtype=np.int64))


def _merge(layers: list[Linear], graph: ir.Graph) -> None:
    """Replace the layers by one and a Split."""
    first, widths = layers[0], [layer.weight.shape[1] for layer in layers]
    name = f"{first.product.name}_merged"
    split = ir.node(
        "Split",
        [_merged(layers, graph, name), int64_initializer(graph, f"{name}.sizes", widths)],
        {"axis": -1},
        num_outputs=len(layers),
        name=f"{name}_Split",
    )
    graph.insert_before(first.product, split)
    for layer, part in zip(layers, split.outputs, strict=True):
        replace_value(layer.output, part)


def _merged(layers: list[Linear], graph: ir.Graph, name: str) -> ir.Value:
    """Insert the layer that computes all outputs, before the first of the layers."""
    first = layers[0]
    biases = [np.zeros_like(layer.weight[0]) if layer.bias is None else layer.bias for layer in layers]
    weight = initializer(graph, f"{name}.weight", np.concatenate([layer.weight for layer in layers], axis=1))
    bias = initializer(graph, f"{name}.bias", np.concatenate(biases))
    shape = ir.Shape([*(first.output.shape or ())[:-1], bias.shape[0]]) if bias.shape is not None else None
    add = functools.partial(insert, before=first.product, graph=graph, like=first.output, shape=shape)
    if first.product.op_type == "Gemm":
        return add(ir.node("Gemm", [first.source, weight, bias], name=name))
    product = add(ir.node("MatMul", [first.source, weight], name=name))
    return add(ir.node("Add", [product, bias], name=f"{name}_Add"))
