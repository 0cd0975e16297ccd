"""Linear layers with constant weights, as Gemm or as MatMul and Add: find them, read and replace their weights."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    initializer,
    insert,
    is_plain_gemm,
    only_consumer,
    required_input,
)
from edgevit.types import Array

FEW_ROWS = 16  # up to these many, a layer's time is that of starting it and of reading its weights


@dataclass(frozen=True, slots=True)
class Linear:
    """The layer y = x weight + bias over the last axis of x."""

    product: ir.Node  # Gemm or MatMul
    addition: ir.Node | None  # Add of the bias of a MatMul; None if it has none, or for a Gemm
    weight: Array  # (in, out)
    bias: Array | None = None  # (out,)

    @property
    def source(self) -> ir.Value:
        return required_input(self.product)

    @property
    def output(self) -> ir.Value:
        return (self.addition or self.product).outputs[0]

    @property
    def bias_or_zeros(self) -> Array:
        return np.zeros_like(self.weight[0]) if self.bias is None else self.bias

    def replace_weights(self, weight: Array, bias: Array | None, graph: ir.Graph) -> None:
        """Set weights of the same shapes; a bias only if the layer has one."""
        name, dtype = self.product.name, self.weight.dtype
        if _is_transposed(self.product):
            weight = weight.T
        self.product.replace_input_with(1, initializer(graph, f"{name}.weight", weight.astype(dtype)))
        if bias is not None:
            value = initializer(graph, f"{name}.bias", bias.astype(dtype))
            if self.addition is not None:
                self.addition.replace_input_with(_bias_index(self.addition), value)
            else:
                self.product.replace_input_with(2, value)


@dataclass(frozen=True, slots=True)
class AddedBias:
    """A constant (out,) that an Add adds to the product of a MatMul."""

    addition: ir.Node
    index: int  # of the constant among the inputs of the Add
    value: ir.Value
    array: Array


def added_bias(product: ir.Value, width: int) -> AddedBias | None:
    """Return the constant (width,) that the only reader of a product adds to it; None if it does anything else."""
    addition = only_consumer(product)
    if addition is None or addition.op_type != "Add":
        return None
    index = 1 if addition.inputs[0] is product else 0
    value = addition.inputs[index]
    array = constant(value)
    if value is None or array is None or array.shape != (width,):
        return None
    return AddedBias(addition, index, value, array)


def int8_weight(product: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of the int8 weight (in, out) of a MatMul; None for any other node."""
    value = product.inputs[1] if product.op_type == "MatMul" and not product.domain else None
    weight = value.producer() if value is not None else None
    if weight is None or weight.op_type != "DequantizeLinear" or weight.attributes.get_int("axis", 1) != 1:
        return None
    integers = constant(weight.inputs[0])
    return weight if integers is not None and integers.ndim == 2 and integers.dtype == np.int8 else None


def linear_at(node: ir.Node) -> Linear | None:
    """Return the linear layer whose product is `node`; None if it is none."""
    if node.domain or len(node.inputs) < 2 or node.inputs[0] is None:
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        added = added_bias(node.outputs[0], weight.shape[1])
        return Linear(node, None, weight) if added is None else Linear(node, added.addition, weight, added.array)
    if not is_plain_gemm(node) or not has_constant_weights(node):
        return None
    weight = weight.T if _is_transposed(node) else weight
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return Linear(node, None, weight, bias) if bias is None or bias.shape == weight.shape[1:] else None


def linear_producing(value: ir.Value) -> Linear | None:
    """Return the linear layer whose output is `value`; None if there is none."""
    node = value.producer()
    if node is not None and node.op_type == "Add" and len(node.inputs) == 2:
        origins = [operand.producer() for operand in node.inputs if operand is not None]
        node = next((origin for origin in origins if origin is not None and origin.op_type == "MatMul"), None)
    layer = linear_at(node) if node is not None else None
    return layer if layer is not None and layer.output is value else None


def has_few_rows(value: ir.Value) -> bool:
    """Whether a value has at most `FEW_ROWS` vectors per image; False if their number is unknown."""
    shape = value.shape
    if shape is None or any(not isinstance(size, int) for size in shape[1:]):
        return False
    return math.prod(size for size in shape[1:-1] if isinstance(size, int)) <= FEW_ROWS


def insert_linear(
    source: ir.Value, weight: Array, bias: Array | None, *, op_type: str, name: str, before: ir.Node, graph: ir.Graph
) -> ir.Value:
    """Insert y = source weight + bias before a node, as "Gemm" or as "MatMul" and Add; return y."""
    shape = ir.Shape([*(source.shape or ())[:-1], weight.shape[1]])
    add = functools.partial(insert, before=before, graph=graph, like=source, shape=shape)
    terms = [] if bias is None else [initializer(graph, f"{name}.bias", bias)]
    factor = initializer(graph, f"{name}.weight", weight)
    if op_type == "Gemm":
        return add(ir.node("Gemm", [source, factor, *terms], name=name))
    product = add(ir.node("MatMul", [source, factor], name=name))
    return add(ir.node("Add", [product, *terms], name=f"{name}_Add")) if terms else product


def _is_transposed(product: ir.Node) -> bool:
    return product.op_type == "Gemm" and bool(product.attributes.get_int("transB", 0))


def _bias_index(addition: ir.Node) -> int:
    return 0 if constant(addition.inputs[0]) is not None else 1
