"""Compute linear layers that read the same value as one, and split its output.

x [W1 W2] + [b1 b2] = [x W1 + b1, x W2 + b2]. Layers with few rows spend their time on starting and on reading their
weights; one layer starts once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import int64_initializer, remove_unused, replace_by_split
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_at


def merge_linear(model: ir.Model) -> None:
    """Merge the linear layers of the same kind that read one value of few rows."""
    layers: dict[tuple[ir.Value, str], list[Linear]] = {}
    for node in model.graph:
        layer = linear_at(node)
        if layer is not None and has_few_rows(layer.source) and not layer.output.is_graph_output():
            layers.setdefault((layer.source, node.op_type), []).append(layer)
    for group in layers.values():
        if len(group) > 1:
            _merge(group, model.graph)
    remove_unused(model)


def _merge(layers: list[Linear], graph: ir.Graph) -> None:
    """Replace the layers by one and a Split."""
    first = layers[0]
    name = f"{first.product.name}_merged"
    merged = insert_linear(
        first.source,
        np.concatenate([layer.weight for layer in layers], axis=1),
        np.concatenate([layer.bias_or_zeros for layer in layers]),
        op_type=first.product.op_type,
        name=name,
        before=first.product,
        graph=graph,
    )
    sizes = int64_initializer(graph, f"{name}.sizes", [layer.weight.shape[1] for layer in layers])
    parts = [layer.output for layer in layers]
    replace_by_split(parts, merged, sizes, axis=-1, before=first.product, graph=graph)
