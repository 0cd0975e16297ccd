"""Compute small linear layers behind a gated attention as multiplications and a sum.

TensorRT fuses no operator in front of a product, and none behind an attention: a gate between them is a kernel of its
own, with the transposition of the heads. A sum takes both with it. Its multiplications are few: 3 to 6 tokens of
Mobile-Former have 12 to 240 channels.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    initializer,
    insert,
    int64_initializer,
    only_consumer,
    remove_unused,
    replace_value,
    sums_to_one,
)
from edgevit.export.linear import Linear, has_few_rows, linear_at
from edgevit.export.operators import REARRANGING

_MAX_WEIGHTS = 2**17  # reading more takes longer than a kernel's start, and products have better kernels for it


def linear_as_sum(model: ir.Model) -> None:
    """Replace the product of each small layer that reads the gated result of an attention."""
    for node in list(model.graph):
        layer = linear_at(node)
        if layer is None or layer.weight.size > _MAX_WEIGHTS or not has_few_rows(layer.output):
            continue
        if _is_gated_attention(layer.source):
            replace_value(node.outputs[0], _insert_sum(layer, model.graph))
    remove_unused(model)


def _is_gated_attention(value: ir.Value) -> bool:
    """Whether a value that one layer reads is the product of an attention, times a gate."""
    gate = _maker(value) if only_consumer(value) is not None else None
    if gate is None or gate.op_type != "Mul":
        return False
    makers = [_maker(factor) for factor in gate.inputs if factor is not None]
    return any(
        maker.op_type == "MatMul" and any(map(sums_to_one, maker.inputs)) for maker in makers if maker is not None
    )


def _maker(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes the numbers of a value, before operators that only move them."""
    node = value.producer() if value is not None else None
    return _maker(node.inputs[0]) if node is not None and node.op_type in REARRANGING else node


def _insert_sum(layer: Linear, graph: ir.Graph) -> ir.Value:
    """Insert the sum over channels of tokens (..., 1, in) times weights (out, in), and a Gemm's bias behind it."""
    product, tokens, name = layer.product, layer.source, str(layer.product.name)
    result = product.outputs[0]
    assert tokens.shape is not None and result.shape is not None
    add = functools.partial(insert, before=product, graph=graph, like=result)
    weight = initializer(graph, f"{name}.rows", np.ascontiguousarray(layer.weight.T))
    axis, channels = (int64_initializer(graph, f"{name}.{of}", [at]) for of, at in (("axis", -2), ("channels", -1)))
    row = ir.Shape([*tokens.shape[:-1], 1, tokens.shape[-1]])
    rows = add(ir.node("Unsqueeze", [tokens, axis], name=f"{name}_Rows"), shape=row)
    terms = add(ir.node("Mul", [rows, weight], name=f"{name}_Mul"), shape=ir.Shape([*result.shape, tokens.shape[-1]]))
    total = add(ir.node("ReduceSum", [terms, channels], {"keepdims": 0}, name=f"{name}_Sum"), shape=result.shape)
    if layer.bias is None or layer.addition is not None:
        return total
    bias = initializer(graph, f"{name}.bias", layer.bias)
    return add(ir.node("Add", [total, bias], name=f"{name}_Add"), shape=result.shape)
