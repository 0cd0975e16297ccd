"""Compute a linear layer behind a Reshape on a matrix, as Gemm, where TensorRT then needs fewer kernels.

Reshape(x) W + b = Reshape(Gemm(Reshape(x), W, b)). TensorRT fuses a MatMul with all additions behind it, and the norm
of a sum of three terms is then a kernel of its own; behind a Gemm, the additions are part of the norm's kernel. Narrow
rows that a Reshape made are padded by copies for a MatMul, not for a Gemm. Attention whose heads are merged by
Transpose and Reshape writes its result in place for a MatMul only: its projection stays if one term is added to it.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from edgevit.export.ir_helpers import insert, int64_initializer, only_consumer, remove_unused, replace_value
from edgevit.export.linear import Linear, insert_linear, linear_at


def flatten_linear(model: ir.Model) -> None:
    """Replace MatMul and Add of each such layer by Reshape, Gemm and Reshape."""
    for node in list(model.graph):
        layer = linear_at(node) if node.op_type == "MatMul" else None
        reshape = layer.source.producer() if layer is not None else None
        if layer is None or layer.addition is None or reshape is None or reshape.op_type != "Reshape":
            continue
        if _is_flattenable(layer) and (not _merges_heads(reshape) or _is_term_of_three(layer.output)):
            _flatten(layer, reshape, model.graph)
    remove_unused(model)


def _is_flattenable(layer: Linear) -> bool:
    """Whether all axes but the first, which the Reshape infers, have known lengths."""
    shape = layer.source.shape or ()
    return len(shape) > 2 and all(isinstance(size, int) for size in shape[1:])


def _merges_heads(reshape: ir.Node) -> bool:
    source = reshape.inputs[0]
    producer = source.producer() if source is not None else None
    return producer is not None and producer.op_type == "Transpose"


def _is_term_of_three(output: ir.Value) -> bool:
    """Whether two additions in a row read a value, and nothing else reads it or their sum."""
    first = only_consumer(output)
    if first is None or first.op_type != "Add":
        return False
    second = only_consumer(first.outputs[0])
    return second is not None and second.op_type == "Add"


def _flatten(layer: Linear, reshape: ir.Node, graph: ir.Graph) -> None:
    before, name, output = layer.product, f"{layer.product.name}_flat", layer.output
    width, features = layer.weight.shape
    restored = [-1, *(size for size in (layer.source.shape or ())[1:-1] if isinstance(size, int)), features]
    add = functools.partial(insert, before=before, graph=graph, like=output)
    rows = add(
        ir.node("Reshape", [reshape.inputs[0], int64_initializer(graph, f"{name}.rows", [-1, width])], name=name),
        shape=ir.Shape([None, width]),
    )
    product = insert_linear(
        rows, layer.weight, layer.bias_or_zeros, op_type="Gemm", name=f"{name}_Gemm", before=before, graph=graph
    )
    shape = int64_initializer(graph, f"{name}.shape", restored)
    replace_value(output, add(ir.node("Reshape", [product, shape], name=f"{name}_back"), shape=output.shape))
