"""Run int8 linear layers on tokens or pixels as 1x1 convolutions.

x W + b, over the last axis of x, is a 1x1 convolution between a Transpose to NCHW and one back: T'(W^T * T(x) + b).
Tokens (N, T, C) are read as an image of T rows and one column. OpenVINO runs convolutions in NHWC, so that neither
Transpose moves data.

On x86 processors without VNNI, OpenVINO computes an int8 linear layer 1.5 to 1.8 times as fast as a convolution as it
does as a matmul, which is slower there than in fp32 (docs/quantization.md has the measurements). In fp32 the matmul is
faster, so that layers in float stay.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    NCHW_TO_NHWC,
    NHWC_TO_NCHW,
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

_MIN_ROWS = 8  # a layer on fewer tokens has too little work for a convolution to be faster


def linear_as_conv(model: ir.Model) -> None:
    """Replace each int8 MatMul of an (N, T, C) or (N, H, W, C) tensor, and the Add of its bias, in place."""
    for node in list(model.graph):
        if (weight := int8_weight(node)) is not None and _has_rows(node.inputs[0]):
            _replace(node, weight, model.graph)
    remove_unused(model)


def _has_rows(value: ir.Value | None) -> bool:
    """Whether the value is (N, T, C) or (N, H, W, C), with `_MIN_ROWS` tokens or pixels at least."""
    if value is None or value.shape is None or len(value.shape) not in (3, 4):
        return False
    sizes = [size for size in list(value.shape)[1:-1] if isinstance(size, int)]
    return len(sizes) == len(value.shape) - 2 and math.prod(sizes) >= _MIN_ROWS


def _replace(matmul: ir.Node, weight: ir.Node, graph: ir.Graph) -> None:
    value, integers = matmul.inputs[0], constant(weight.inputs[0])
    assert value is not None and value.shape is not None and integers is not None
    name = f"{module_of(matmul)}/Conv".lstrip("/")
    is_tokens = len(value.shape) == 3
    batch, *rows, _ = value.shape
    height, width = rows if len(rows) == 2 else (rows[0], 1)
    inputs, outputs = integers.shape
    bias = added_bias(matmul.outputs[0], outputs)
    last = matmul if bias is None else bias.addition
    columns = int64_initializer(graph, f"{name}.columns", [2]) if is_tokens else None

    def add(node: ir.Node, *shape: int | ir.SymbolicDim | None) -> ir.Value:
        return insert(node, before=last, graph=graph, like=last.outputs[0], shape=ir.Shape(shape))

    if is_tokens:
        value = add(ir.node("Unsqueeze", [value, columns], name=f"{name}_Unsqueeze"), batch, height, width, inputs)
    first = ir.node("Transpose", [value], {"perm": NHWC_TO_NCHW}, name=f"{name}_first")
    kernel = add(_kernel(weight, integers, name, graph), outputs, inputs, 1, 1)
    feeds = [add(first, batch, inputs, height, width), kernel, *([] if bias is None else [bias.value])]
    value = add(ir.node("Conv", feeds, {"kernel_shape": [1, 1]}, name=name), batch, outputs, height, width)
    back = ir.node("Transpose", [value], {"perm": NCHW_TO_NHWC}, name=f"{name}_last")
    value = add(back, batch, height, width, outputs)
    if is_tokens:
        value = add(ir.node("Squeeze", [value, columns], name=f"{name}_Squeeze"), batch, height, outputs)
    replace_value(last.outputs[0], value)


def _kernel(weight: ir.Node, integers: Array, name: str, graph: ir.Graph) -> ir.Node:
    """Return the DequantizeLinear of the weight as a kernel, (outputs, inputs, 1, 1)."""
    stored = initializer(graph, f"{name}.weight_int8", integers.T[:, :, None, None])
    zeros = weight.inputs[2] if len(weight.inputs) > 2 else None
    inputs = [stored, weight.inputs[1], *([] if zeros is None else [zeros])]
    return ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}_DequantizeLinear")
