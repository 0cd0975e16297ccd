"""Multiply-accumulate counts per node."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.macs import convolution_macs, matmul_macs
from edgevit.types import Shape


def graph_macs(graph: OnnxGraph) -> int:
    """Return the MACs of a graph's convolutions and matmuls for one image."""
    return sum(map(node_macs, graph.model.graph))


def node_macs(node: ir.Node) -> int:
    """Return the MACs of a Conv, ConvTranspose, Gemm or MatMul for one image; 0 for other nodes."""
    if node.domain or len(node.inputs) < 2 or node.inputs[1] is None:
        return 0
    left, right, out = (static_shape(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if node.op_type == "Conv" and len(out) > 1:
        return convolution_macs(out, right, out[1]) or 0
    if node.op_type == "ConvTranspose" and len(left) > 1:
        return convolution_macs(left, right, left[1]) or 0
    return (matmul_macs(left, out) or 0) if node.op_type in ("Gemm", "MatMul") else 0


def static_shape(value: ir.Value | None) -> Shape:
    """Return the shape of a value for a batch of one; () if it is unknown."""
    dims = value.shape if value is not None and value.shape is not None else ()
    return tuple(dim if isinstance(dim, int) else _at_batch_one(str(dim)) for dim in dims)


def _at_batch_one(dim: str) -> int:
    """Evaluate a symbolic dimension for a batch of one: 4 for `4*batch`, the windows of a batch as rows."""
    return math.prod(int(factor) for factor in dim.split("*") if factor.strip().isdigit())
