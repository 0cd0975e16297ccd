"""Multiply-accumulate counts per node."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.macs import ModelWork, attention_macs, convolution_macs, matmul_macs
from edgevit.types import Array, Shape

MERGED = "merged_groups"  # metadata of a convolution whose groups have become one: how many they were
WORK = "work_of_model"  # metadata of a convolution that computes another: MACs of the model for each that it executes


def graph_macs(graph: OnnxGraph) -> int:
    """Return the MACs of a graph's convolutions and matmuls for one image."""
    return sum(map(node_macs, graph.model.graph))


def graph_work(graph: OnnxGraph, *, batch: int) -> ModelWork:
    """Return the work of a graph that is static for `batch` images; of one image if its batch is dynamic.

    The total is that of the model: without products with zeros between groups that a pass has merged, and with the
    products that `winograd_rows` saves. Those of each node are as they are executed.
    """
    inside = graph.model.graph
    ends = [*inside.inputs, *inside.outputs]
    counts = {str(node.name): macs for node in inside if (macs := node_macs(node))}
    results = [output for node in inside if node_macs(node) for output in node.outputs]
    weights = [value.const_value for value in inside.initializers.values()]
    return ModelWork(
        batch=1 if any(spec.is_dynamic for spec in graph.inputs) else batch,
        macs=sum(round(_work_of_model(node) * node_macs(node)) for node in inside),
        weight_bytes=sum(tensor.nbytes for tensor in weights if tensor is not None),
        io_bytes=sum(map(_size_bytes, ends)),
        activation_bytes=2 * sum(map(_size_bytes, results)),
        node_macs=counts,
    )


def _size_bytes(value: ir.Value) -> int:
    """Return the bytes of a value for a batch of one; 0 if its shape is unknown."""
    shape = static_shape(value)
    return math.ceil(math.prod(shape) * value.dtype.itemsize) if shape and value.dtype is not None else 0


def node_macs(node: ir.Node) -> int:
    """Return the MACs of a Conv, ConvTranspose, Gemm, MatMul or Attention for one image; 0 for other nodes."""
    if node.domain or len(node.inputs) < 2 or node.inputs[1] is None:
        return 0
    left, right, out = (static_shape(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if node.op_type == "Conv" and len(out) > 1:
        return convolution_macs(out, right, out[1]) or 0
    if node.op_type == "ConvTranspose" and len(left) > 1:
        return convolution_macs(left, right, left[1]) or 0
    if node.op_type == "Attention" and min(len(left), len(right), len(out)) > 1:
        return attention_macs(left, right, out)
    return (matmul_macs(left, out) or 0) if node.op_type in ("Gemm", "MatMul") else 0


def _work_of_model(node: ir.Node) -> float:
    """Return the MACs of the model for each MAC that a node executes."""
    given = node.metadata_props.get(WORK)
    return _nonzero_fraction(node) if given is None else float(given)


def _nonzero_fraction(node: ir.Node) -> float:
    """Return the fraction of kernels that are not zero, of a convolution that has or had groups; 1 for other nodes.

    A kernel is that of one output and one input. 1 too if all are zero; 0 if each output copies an input, which is how
    `shift_to_depthwise` moves channels.
    """
    if node.op_type != "Conv" or (node.attributes.get_int("group", 1) == 1 and MERGED not in node.metadata_props):
        return 1.0
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    stored = producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else value
    kernels = constant(stored)  # (outputs, inputs of a group, ...)
    if kernels is None:
        return 1.0
    if kernels.shape[1] == 1 and _copies(kernels):
        return 0.0
    return float(kernels.any(axis=tuple(range(2, kernels.ndim))).mean()) or 1.0


def _copies(kernels: Array) -> bool:
    """Whether each kernel, (outputs, 1, ...), is 1 at one place and 0 elsewhere."""
    flat = kernels.reshape(len(kernels), -1)
    return bool(((flat != 0).sum(1) == 1).all() and (flat.max(1) == 1).all())


def static_shape(value: ir.Value | None) -> Shape:
    """Return the shape of a value for a batch of one; () if it is unknown."""
    dims = value.shape if value is not None and value.shape is not None else ()
    return tuple(dim if isinstance(dim, int) else _at_batch_one(str(dim)) for dim in dims)


def _at_batch_one(dim: str) -> int:
    """Evaluate a symbolic dimension for a batch of one: 4 for `4*batch`, the windows of a batch as rows."""
    return math.prod(int(factor) for factor in dim.split("*") if factor.strip().isdigit())
