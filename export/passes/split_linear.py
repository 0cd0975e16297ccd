"""Compute each part of a linear layer's output by a layer of its own, instead of splitting it.

Attention often computes queries, keys and values by one layer, and splits its output. A runtime copies the parts: in
ONNX Runtime that takes a tenth of the time of the product. Each column of the output is computed from a column of the
weights, so that a layer for each part computes the same numbers. With few rows, whose time is that of starting a layer,
one layer is faster (`merge_linear`). The parts are marked, so that they can be compared with PyTorch's whole tensor.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import only_consumer, remove_unused, replace_value, sizes_of_image
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_producing
from edgevit.export.tensor_parts import JoinedPart, mark_joined_part


def split_linear(model: ir.Model) -> None:
    """Replace each Split of a linear layer's output, which nothing else reads, by a layer for each part."""
    for node in list(model.graph):
        layer = _layer(node)
        if layer is not None:
            _replace(layer, node, model.graph)
    remove_unused(model)


def _layer(split: ir.Node) -> Linear | None:
    """Return the layer whose output a Split along the last axis alone reads; None if it is of few or unknown rows."""
    value = split.inputs[0] if split.op_type == "Split" and not split.domain else None
    if value is None or value.shape is None or only_consumer(value) is None or not sizes_of_image(value):
        return None
    is_last = split.attributes.get_int("axis", 0) in (-1, len(value.shape) - 1)
    return linear_producing(value) if is_last and not has_few_rows(value) else None


def _replace(layer: Linear, split: ir.Node, graph: ir.Graph) -> None:
    sizes = [sizes_of_image(part)[-1] for part in split.outputs]
    columns = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    for number, (part, own) in enumerate(zip(split.outputs, columns, strict=True)):
        bias = None if layer.bias is None else layer.bias[own]
        name = f"{layer.product.name}_{number}"
        new = insert_linear(
            layer.source,
            layer.weight[:, own],
            bias,
            op_type=layer.product.op_type,
            name=name,
            before=split,
            graph=graph,
        )
        mark_joined_part(new, JoinedPart(str(layer.output.name), number, len(sizes)))
        replace_value(part, new)
