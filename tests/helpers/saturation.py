"""Emulate the int8 sums of x86 processors without VNNI in ONNX Runtime: they saturate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, initializer, int64_initializer, replace_value
from edgevit.export.operators import LAYERS
from edgevit.export.quantization.dtypes import FP32
from edgevit.types import Array


def emulate_saturation(graph: OnnxGraph) -> OnnxGraph:
    """Return a QDQ graph with the results of an x86 processor without VNNI.

    Such a processor adds the products of uint8 activations and int8 weights in pairs in 16-bit integers that saturate
    (`vpmaddubsw`), and the sums of pairs in 32 bits. Pairs are neighbors along the reduction axis: for a convolution
    the channels of one kernel tap, then those of the next. ONNX Runtime on an AMD EPYC with AVX2 computes the same.

    All dimensions but the batch have to be static. Memory grows with the number of pairs: use it on small graphs.
    """
    return graph.apply("emulate_saturation", _replace_int8_layers)


def _replace_int8_layers(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type in LAYERS and (operands := _int8_operands(node)) is not None:
            _SaturatingLayer(model.graph, node, operands).replace()


@dataclass(frozen=True, slots=True)
class _Operands:
    """The quantized operands of a layer."""

    codes: ir.Value  # quantized activation, uint8
    scale: Array  # ()
    zero: int
    weight: Array  # int8, output channels along `axis`
    weight_scales: Array  # (channels,)
    axis: int


def _int8_operands(node: ir.Node) -> _Operands | None:
    x, w = (value.producer() if value is not None else None for value in node.inputs[:2])
    if x is None or w is None or (x.op_type, w.op_type) != ("DequantizeLinear", "DequantizeLinear"):
        return None
    codes, weight = x.inputs[0], constant(w.inputs[0])
    scale, zero, weight_scales = constant(x.inputs[1]), constant(x.inputs[2]), constant(w.inputs[1])
    if codes is None or weight is None or scale is None or zero is None or weight_scales is None:
        return None
    if zero.dtype != np.uint8:
        return None
    return _Operands(codes, scale, int(zero), weight, weight_scales, w.attributes.get_int("axis", 1))


class _SaturatingLayer:
    """Replaces one int8 layer by nodes that compute each pair of products separately."""

    def __init__(self, graph: ir.Graph, node: ir.Node, operands: _Operands) -> None:
        self._graph, self._node, self._operands = graph, node, operands

    def replace(self) -> None:
        node, operands = self._node, self._operands
        codes = self._add("Cast", [operands.codes], {"to": int(FP32)})
        spatial = operands.weight.ndim - 2 if node.op_type == "Conv" else 0
        sums = self._convolve(codes) if node.op_type == "Conv" else self._multiply(codes)
        shape = (-1, *[1] * spatial)
        totals = np.moveaxis(operands.weight, operands.axis, 0).reshape(len(operands.weight_scales), -1).sum(1, float)
        result = self._add("Sub", [sums, self._constant((operands.zero * totals).reshape(shape))])
        result = self._add("Mul", [result, self._constant((operands.scale * operands.weight_scales).reshape(shape))])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = self._add("Reshape", [node.inputs[2], self._integers(shape)])
            result = self._add("Add", [result, bias])
        replace_value(node.outputs[0], result)
        self._graph.remove(node, safe=True)

    def _convolve(self, codes: ir.Value) -> ir.Value:
        """Return the sums of a convolution: one convolution output channel for each pair of weights."""
        node, weight = self._node, self._operands.weight
        channels, depth, *kernel = weight.shape
        taps = weight.reshape(channels, depth, -1).transpose(0, 2, 1).reshape(channels, -1)  # channels fastest
        count = (taps.shape[1] + 1) // 2
        pairs = np.zeros((channels, count, taps.shape[1]), np.float32)
        for index in range(taps.shape[1]):
            pairs[:, index // 2, index] = taps[:, index]
        kernels = pairs.reshape(channels * count, -1, depth).transpose(0, 2, 1).reshape(-1, depth, *kernel)
        attributes = {name: attr for name, attr in node.attributes.items() if name != "pads"}
        pads = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
        ends = [0, 0, *pads[: len(kernel)], 0, 0, *pads[len(kernel) :]]
        zero = self._constant(np.asarray(self._operands.zero))
        padded = self._add("Pad", [codes, self._integers(ends), zero])
        products = self._add("Conv", [padded, self._constant(kernels)], attributes)
        size = _dims_after(node.outputs[0], 2)
        apart = self._add("Reshape", [self._saturated(products), self._integers([0, channels, count, -1])])
        sums = self._add("ReduceSum", [apart, self._integers([2])], {"keepdims": 0})
        return self._add("Reshape", [sums, self._integers([0, channels, *size])])

    def _multiply(self, codes: ir.Value) -> ir.Value:
        """Return the sums of a matmul: one matmul for each pair of rows of the weight."""
        operands = self._operands
        weight = operands.weight.T if operands.axis == 0 else operands.weight
        depth, channels = weight.shape
        count = (depth + 1) // 2
        rows = self._add("Reshape", [codes, self._integers([-1, depth])])
        if depth % 2:
            rows = self._add("Pad", [rows, self._integers([0, 0, 0, 1])])
            weight = np.concatenate([weight, np.zeros((1, channels), weight.dtype)])
        rows = self._add("Reshape", [rows, self._integers([-1, count, 2])])
        rows = self._add("Transpose", [rows], {"perm": [1, 0, 2]})
        products = self._add("MatMul", [rows, self._constant(weight.reshape(count, 2, channels))])
        sums = self._add("ReduceSum", [self._saturated(products), self._integers([0])], {"keepdims": 0})
        return self._add("Reshape", [sums, self._integers([-1, *_dims_after(self._node.outputs[0], 1)])])

    def _saturated(self, products: ir.Value) -> ir.Value:
        bounds = np.iinfo(np.int16)
        limits = [self._constant(np.asarray(bound)) for bound in (bounds.min, bounds.max)]
        return self._add("Clip", [products, *limits])

    def _add(
        self, operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes or {}, name=f"{self._node.name}_{operator}")
        node.outputs[0].type = ir.TensorType(FP32)
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def _constant(self, array: Array) -> ir.Value:
        return initializer(self._graph, f"{self._node.name}_saturation", array.astype(np.float32))

    def _integers(self, values: Sequence[int]) -> ir.Value:
        return int64_initializer(self._graph, f"{self._node.name}_saturation", list(values))


def _dims_after(value: ir.Value, start: int) -> list[int]:
    """Return the dimensions of a value from `start` on; they have to be static."""
    assert value.shape is not None
    return [int(dim) for dim in list(value.shape)[start:]]  # type: ignore[arg-type]  # static
