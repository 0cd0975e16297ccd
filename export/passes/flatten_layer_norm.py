"""Normalize the pixels of maps as tokens, (N, H, W, C) as (N, H * W, C).

A LayerNormalization over the last axis does not depend on the axes before it. OpenVINO has a kernel for it on values of
up to three axes; on maps it runs a mean, a difference, an RMS norm and a scale, one kernel each.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgevit.export.ir_helpers import insert, int64_initializer, remove_unused, replace_value
from edgevit.export.layer_norm import LayerNorm, layer_norm_at

_TOKENS = 3  # rank of (N, tokens, C)


def flatten_layer_norm(model: ir.Model) -> None:
    """Put each norm of a value of more than three axes between two Reshapes."""
    for node in list(model.graph):
        norm = layer_norm_at(node)
        if norm is not None and len(norm.source.shape or ()) > _TOKENS:
            _flatten(norm, model.graph)
    remove_unused(model)


def _flatten(norm: LayerNorm, graph: ir.Graph) -> None:
    node, source, old = norm.node, norm.source, norm.output
    assert source.shape is not None
    batch, known = source.shape[0], [size for size in source.shape[1:] if isinstance(size, int)]
    if len(known) < len(source.shape) - 1:
        return
    tokens = [math.prod(known[:-1]), known[-1]]
    flat = _reshape(source, ir.Shape([batch, *tokens]), f"{node.name}_tokens", node, graph)
    inputs = [flat, *node.inputs[1:]]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    normed = ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}, name=node.name)
    normalized = insert(normed, before=node, graph=graph, like=source, shape=flat.shape)
    result = _reshape(normalized, ir.Shape([batch, *known]), f"{node.name}_map", node, graph)
    replace_value(old, result)


def _reshape(value: ir.Value, shape: ir.Shape, name: str, before: ir.Node, graph: ir.Graph) -> ir.Value:
    sizes = int64_initializer(graph, f"{name}.shape", [0, *(size for size in shape[1:] if isinstance(size, int))])
    return insert(ir.node("Reshape", [value, sizes], name=name), before=before, graph=graph, like=value, shape=shape)
