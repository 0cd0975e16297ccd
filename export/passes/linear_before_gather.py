"""Apply a linear layer to all tokens and pick the token from its output, if other layers read all tokens.

Gather(x, i) W + b = Gather(x W + b, i). TensorRT computes the layers that read one value in one kernel. The layer of
one token would take part of the norm before it into a kernel of its own, which cuts the norm in two.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, insert, remove_unused, replace_value
from edgevit.export.linear import Linear, has_few_rows, insert_linear, linear_at


def linear_before_gather(model: ir.Model) -> None:
    """Swap a Gather of one of few tokens with a linear layer that reads it."""
    for node in list(model.graph):
        layer = linear_at(node)
        gather = layer.source.producer() if layer is not None else None
        if layer is not None and gather is not None and _picks_a_token(gather) and _has_other_layers(gather):
            _swap(gather, layer, model.graph)
    remove_unused(model)


def _picks_a_token(gather: ir.Node) -> bool:
    """Whether a node is a Gather of one of the few tokens of a value (N, M, D)."""
    if gather.op_type != "Gather" or gather.attributes.get_int("axis", 0) != 1:
        return False
    tokens, index = gather.inputs[0], constant(gather.inputs[1])
    is_one = index is not None and index.ndim == 0
    return is_one and tokens is not None and len(tokens.shape or ()) == 3 and has_few_rows(tokens)


def _has_other_layers(gather: ir.Node) -> bool:
    """Whether a linear layer reads all the tokens."""
    tokens = gather.inputs[0]
    return tokens is not None and any(linear_at(use.node) is not None for use in tokens.uses())


def _swap(gather: ir.Node, layer: Linear, graph: ir.Graph) -> None:
    tokens, before = gather.inputs[0], layer.product
    assert tokens is not None
    name = f"{before.name}_of_all"
    projected = insert_linear(
        tokens, layer.weight, layer.bias_or_zeros, op_type="MatMul", name=name, before=before, graph=graph
    )
    picked = ir.node("Gather", [projected, gather.inputs[1]], {"axis": 1}, name=f"{name}_Gather")
    replace_value(layer.output, insert(picked, before=before, graph=graph, like=projected, shape=layer.output.shape))
