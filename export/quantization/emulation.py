"""Emulate the arithmetic of other engines in ONNX Runtime: fp16 rounding, and int8 sums that saturate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, initializer, int64_initializer, replace_value
from edgevit.export.quantization.dtypes import FP16, FP32, MOVING, replace_output, set_type
from edgevit.types import Array


def emulate_fp16(graph: OnnxGraph) -> OnnxGraph:
    """A graph in fp32 that computes what a typed graph says: whatever that types as fp16 is rounded to fp16.

    ONNX Runtime's CPU provider has next to no fp16 arithmetic. It computes a typed graph in fp32 and drops the rounding
    between operators: a graph that overflows on an engine gives fine answers there. Here the roundings are Casts of the
    graph's own, which ONNX Runtime obeys. Within an operator this sums up in fp32, as engines do.
    """
    return graph.apply("emulate_fp16", _emulate)


def _emulate(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        array = constant(value) if value.dtype == FP16 else None
        if array is not None:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            set_type(value, FP32)
    for value in model.graph.inputs:
        if value.dtype == FP16:
            set_type(value, FP32)
    for node in list(model.graph.all_nodes()):
        for value in node.outputs:
            if value.dtype == FP16:
                _round(node, value)


def _round(node: ir.Node, value: ir.Value) -> None:
    """Lets all readers of a value read it rounded to fp16, in fp32."""
    graph = node.graph
    if graph is None or node.op_type in MOVING:  # moved values have been rounded before
        set_type(value, FP32)
        return
    readers = list(value.uses())
    narrowing = node  # a Cast to fp16 of the graph's own does it, for any other node there is one more
    if node.op_type != "Cast":
        set_type(value, FP32)
        narrowing = ir.node("Cast", [value], {"to": int(FP16)}, name=f"{node.name}_round")
        graph.insert_after(node, narrowing)
    narrow = narrowing.outputs[0]
    widening = ir.node("Cast", [narrow], {"to": int(FP32)}, name=f"{node.name}_widen")
    graph.insert_after(narrowing, widening)
    wide = widening.outputs[0]
    narrow.shape = wide.shape = value.shape
    set_type(narrow, FP16)
    set_type(wide, FP32)
    for use in readers:
        use.node.replace_input_with(use.idx, wide)
    if value.is_graph_output():
        replace_output(graph, value, wide, suffix="unrounded")


def emulate_saturation(graph: OnnxGraph) -> OnnxGraph:
    """Return a QDQ graph that computes what an x86 processor without VNNI computes.

    There the products of uint8 activations and int8 weights are summed in pairs in 16-bit integers that saturate, and
    the pairs in 32 bits (`vpmaddubsw`). Neighbors along the reduction axis make a pair: for a convolution the channels
    of one kernel tap, then the next tap. On an AMD EPYC with AVX2 this is what ONNX Runtime's kernels compute.

    Needs static shapes but for the batch. Memory grows with the number of pairs: for small graphs.
    """
    return graph.apply("emulate_saturation", _saturate_layers)


def _saturate_layers(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type in ("Conv", "Gemm", "MatMul") and (operands := _int8_operands(node)) is not None:
            _Saturation(model.graph, node, operands).replace()


@dataclass(frozen=True, slots=True)
class _Operands:
    """The quantized operands of a layer."""

    codes: ir.Value  # uint8
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


class _Saturation:
    """Replaces one layer by the sums that saturate."""

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
        """Convolve with each pair of weights by itself: one output channel a pair."""
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
        """Multiply each pair of columns with its pair of rows by itself."""
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
    """The dimensions of a value from `start` on, which have to be static."""
    assert value.shape is not None
    return [int(dim) for dim in list(value.shape)[start:]]  # type: ignore[arg-type]  # no batch among them
