"""Run int8 linear layers on tokens or pixels as 1x1 convolutions.

x W + b of tokens (N, T, C) is a convolution of one dimension between two Transposes: T'(W^T * T(x) + b). The pixels of
an (N, H, W, C) map are tokens first. OpenVINO computes convolutions with their channels last, so that neither Transpose
moves data; with two dimensions, or with a map's own Transposes, it copies the output once or twice.

On x86 without VNNI and AVX-512, OpenVINO's int8 matmul is slower than its convolution (docs/quantization.md). With
AVX-512 it is as fast, but OpenVINO adds the bias of a map in a separate pass. In fp32 the matmul is faster, so that
layers in float stay matmuls.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from edgevit.cpu import has_avx512, saturates_int8
from edgevit.export.ir_helpers import (
    constant,
    initializer,
    insert,
    int64_initializer,
    module_of,
    remove_unused,
    replace_value,
)
from edgevit.export.linear import added_bias, int8_weight
from edgevit.types import Array

_TOKENS, _MAP = 3, 4  # ranks
_SWAP = [0, 2, 1]  # tokens (N, T, C) and channels (N, C, T)
_MIN_ROWS = 8  # a layer on fewer tokens has too little work for a convolution to be faster


def faster_ranks() -> frozenset[int]:
    """Return the ranks of the inputs of int8 linear layers that OpenVINO runs faster as convolutions here."""
    if has_avx512():
        return frozenset({_MAP})
    return frozenset({_TOKENS, _MAP}) if saturates_int8() else frozenset()


def linear_as_conv(model: ir.Model, *, ranks: Collection[int]) -> None:
    """Replace int8 MatMuls of tensors of one of `ranks`, and the Adds of their biases, in place.

    Rank 3 is that of tokens (N, T, C), rank 4 that of maps (N, H, W, C); tensors of other ranks are not supported.
    """
    for node in list(model.graph):
        if (weight := int8_weight(node)) is not None and _has_rows(node.inputs[0], ranks):
            _replace(node, weight, model.graph)
    remove_unused(model)


def _has_rows(value: ir.Value | None, ranks: Collection[int]) -> bool:
    """Whether the value has one of the ranks, and at least `_MIN_ROWS` tokens or pixels."""
    if value is None or value.shape is None or len(value.shape) not in ranks:
        return False
    sizes = [size for size in list(value.shape)[1:-1] if isinstance(size, int)]
    return len(sizes) == len(value.shape) - 2 and math.prod(sizes) >= _MIN_ROWS


def _replace(matmul: ir.Node, weight: ir.Node, graph: ir.Graph) -> None:
    value, integers = matmul.inputs[0], constant(weight.inputs[0])
    assert value is not None and value.shape is not None and integers is not None
    name = f"{module_of(matmul)}/Conv".lstrip("/")
    batch, *sizes, _ = value.shape
    rows = math.prod(size for size in sizes if isinstance(size, int))
    inputs, outputs = integers.shape
    bias = added_bias(matmul.outputs[0], outputs)
    last = matmul if bias is None else bias.addition

    def add(node: ir.Node, *shape: int | ir.SymbolicDim | None) -> ir.Value:
        return insert(node, before=last, graph=graph, like=last.outputs[0], shape=ir.Shape(shape))

    def reshape(value: ir.Value, step: str, *shape: int) -> ir.Value:
        target = int64_initializer(graph, f"{name}.{step}", [0, *shape])  # 0: the batch as it is
        return add(ir.node("Reshape", [value, target], name=f"{name}_{step}"), batch, *shape)

    if len(sizes) > 1:
        value = reshape(value, "rows", rows, inputs)
    first = ir.node("Transpose", [value], {"perm": _SWAP}, name=f"{name}_first")
    kernel = add(_kernel(weight, integers, name, graph), outputs, inputs, 1)
    feeds = [add(first, batch, inputs, rows), kernel, *([] if bias is None else [bias.value])]
    value = add(ir.node("Conv", feeds, {"kernel_shape": [1]}, name=name), batch, outputs, rows)
    value = add(ir.node("Transpose", [value], {"perm": _SWAP}, name=f"{name}_last"), batch, rows, outputs)
    if len(sizes) > 1:
        value = reshape(value, "map", *(size for size in sizes if isinstance(size, int)), outputs)
    replace_value(last.outputs[0], value)


def _kernel(weight: ir.Node, integers: Array, name: str, graph: ir.Graph) -> ir.Node:
    """Return the DequantizeLinear of the weight as a kernel, (outputs, inputs, 1)."""
    stored = initializer(graph, f"{name}.weight_int8", integers.T[:, :, None])
    zeros = weight.inputs[2] if len(weight.inputs) > 2 else None
    inputs = [stored, weight.inputs[1], *([] if zeros is None else [zeros])]
    return ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}_DequantizeLinear")
