"""int8: a graph in which QuantizeLinear and DequantizeLinear stand around the layers that are to run in integers.

What stands in the graph is what runs; no runtime chooses ranges of its own. Weights are int8 in the file, symmetric,
with a scale for each output channel. An activation has one scale, from what it reaches on calibration photos: the
extremes of all photos, so that nothing of them is cut off. In float stay norms, softmax, activation functions, the
products of attention and the residual stream; and of the layers those that would gain nothing (`layers_of`).

Why not a library. Measured with the trained ShiftViT on CIFAR-10 (300 photos to calibrate, 2,000 to judge, top-1 0.7625
in fp32) and with shiftvit_t in OpenVINO 2026.4 and ONNX Runtime 1.31, side by side on one core:

    quantiser                           same top-1   SNR       speed-up of shiftvit_t
    NNCF 3.4, performance               97.35 %      23.0 dB   2.8 (OpenVINO)
    NNCF 3.4, mixed                     39.25 %       1.8 dB   -
    NNCF 3.4, transformer and mixed     98.20 %      26.3 dB   2.9 (OpenVINO)
    onnxruntime quantize_static, u8s8   98.20 %      27.8 dB   2.5 (ONNX Runtime), 2.4 (OpenVINO)
    ModelOpt 0.47, max                  98.25 %      27.7 dB   - (for TensorRT)
    ModelOpt 0.47, entropy              98.10 %      28.4 dB   - (for TensorRT)
    this, for OpenVINO                  98.55 %      31.5 dB   2.9 (OpenVINO)
    this, for ONNX Runtime              98.30 %      27.9 dB   2.5 (ONNX Runtime)
    this, for TensorRT                  98.45 %      27.7 dB   -

Of ModelOpt the better of its fp32 and fp16 forms. The mean of the photos' extremes instead of the extremes themselves
loses 5 dB.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, initializer, module_of, only_consumer, remove_unused
from edgevit.export.macs import graph_macs, node_macs, static_shape
from edgevit.export.quantization.calibration import Reach
from edgevit.export.quantization.dtypes import is_float, replace_output
from edgevit.formats import Int8Range, Int8Scheme
from edgevit.types import Array, Precision

Bits: TypeAlias = Literal["uint8", "int8"]

GROUPED = "a grouped convolution, which engines run little faster in integers, or slower"
MULTIPLIED = "a depthwise convolution with several outputs a channel, which engines run slowly in integers"
MAX_PAIR_SUM = 128  # of two weights of one sign: 255 * 128 = 32640 fits in int16, 255 * 129 does not
LEAST_SHARE = 0.001  # of the multiply-adds: less than that is sooner computed than quantised
_LARGEST_BIAS = 2.0**30  # in steps of the sum; the products need room in 32 bits beside it
_SMALLEST_SCALE: Mapping[Precision, float] = {"fp32": 2.0**-60, "fp16": 2.0**-14}  # a normal number of the type


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A node with constant weights: a convolution, a Gemm or a matrix product."""

    name: str  # <PyTorch module path>/<operator>
    operator: str
    multiply_adds: int  # of one image
    activation: str  # the tensor that it reads
    output: str
    stays_float: str  # why it would gain nothing in int8; empty where it would


def layers_of(graph: OnnxGraph) -> tuple[Layer, ...]:
    """The layers, in the order of the graph, which has passed `check` so that every shape is known.

    Grouped convolutions gain least and stay float, but for a graph that does most of its work in them.
    """
    total = graph_macs(graph)
    layers = tuple(_layer(node, total) for node in graph.model.graph if _weight(node) is not None)
    if sum(layer.multiply_adds for layer in layers if not layer.stays_float) >= total / 2:
        return layers
    return tuple(replace(layer, stays_float="") if layer.stays_float == GROUPED else layer for layer in layers)


def quantize(graph: OnnxGraph, layers: Collection[str], reach: Mapping[str, Reach], *, scheme: Int8Scheme) -> OnnxGraph:
    """The graph with the layers of those names in int8. `reach` knows what they read and, where framed, what they make.

    Two layers that read one tensor share its rounding; others go on reading it as it was.
    """

    def rewrite(model: ir.Model) -> None:
        _Quantizer(model, reach, scheme).quantize(frozenset(layers))
        remove_unused(model)  # the weights in fp32

    return graph.apply("quantize", rewrite)


def activation_scale(reach: Reach, bits: Bits, *, smallest: float = 0.0) -> tuple[Array, Array]:
    """The scale and the zero point of a tensor. 0 is always among its values, since padding adds zeros."""
    low, high = min(reach.low, 0.0), max(reach.high, 0.0)
    if bits == "int8":
        return np.asarray(max(-low / 127, high / 127, smallest), np.float32), np.asarray(0, np.int8)
    scale = max((high - low) / 255, smallest)
    return np.asarray(scale, np.float32), np.asarray(round(-low / scale), np.uint8)


def channel_scales(weight: Array, axis: int, *, weight_range: Int8Range = "full", smallest: float = 0.0) -> Array:
    """Return the scales of a weight's output channels, (channels,).

    For "safe" weights the two largest of one sign in a channel sum to 127.5 steps at most: once each is rounded to the
    nearest integer, to `MAX_PAIR_SUM` at most.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scales: Array = np.abs(weight).max(others) / 127
    if weight_range == "safe":
        scales = np.maximum(scales, _pair_sums(weight, axis) / (MAX_PAIR_SUM - 0.5))
    return np.maximum(scales, smallest).astype(np.float32)


def needs_vnni(graph: OnnxGraph) -> bool:
    """Whether products of the QDQ graph's int8 weights with uint8 can overflow on an x86 processor without VNNI.

    Such processors sum the products in pairs in 16-bit integers that saturate (`vpmaddubsw`). Which products make a
    pair depends on how a runtime lays out its weights; all belong to one output channel. So no pair overflows, for
    any input and any layout, if no two weights of one sign in a channel sum to more than `MAX_PAIR_SUM`.
    """
    for node in graph.model.graph:
        weight = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.dtype == np.int8 and weight.ndim > 1:
            axis = node.attributes.get_int("axis", 1)
            if _pair_sums(weight.astype(np.int32), axis).max(initial=0) > MAX_PAIR_SUM:
                return True
    return False


def _pair_sums(weight: Array, axis: int) -> Array:
    """Return the largest magnitude of a sum of two weights of one sign in each output channel, (channels,)."""
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    signed = np.concatenate([channels, -channels]).clip(0)
    count = min(2, signed.shape[1])
    sums: Array = np.partition(signed, -count, axis=1)[:, -count:].sum(1).reshape(2, -1).max(0)
    return sums


class _Quantizer:
    """Changes one model in place."""

    def __init__(self, model: ir.Model, reach: Mapping[str, Reach], scheme: Int8Scheme) -> None:
        self._graph, self._reach, self._scheme = model.graph, reach, scheme
        self._smallest = _SMALLEST_SCALE[scheme.float_dtype]
        self._weights: dict[tuple[ir.Value, int, bytes], ir.Value] = {}

    def quantize(self, names: AbstractSet[str]) -> None:
        layers = [node for node in self._graph if node.name in names]
        scales = {node: self._scale(node.inputs[0])[0] for node in layers}
        self._round_activations(layers)
        for node in layers:
            bias = _bias(node) if self._scheme.int32_biases else None
            least = 0.0 if bias is None else np.abs(bias.array) / (scales[node] * _LARGEST_BIAS)
            weight_scales = self._quantize_weight(node, least)
            if bias is not None:
                self._quantize_bias(node, bias, scales[node] * weight_scales)

    def _round_activations(self, layers: Sequence[ir.Node]) -> None:
        """One pair for each tensor that a layer reads, or that leaves a layer which is to be framed."""
        chosen = set(layers)
        framed = dict.fromkeys(node.outputs[0] for node in layers if node.op_type in self._scheme.quantize_outputs_of)
        read = dict.fromkeys(value for node in layers if (value := node.inputs[0]) is not None)
        for value in {**read, **framed}:
            readers = [use for use in value.uses() if value in framed or (use.node in chosen and use.idx == 0)]
            rounded = self._pair(value)
            for use in readers:
                use.node.replace_input_with(use.idx, rounded)
            if value in framed and value.is_graph_output():
                replace_output(self._graph, value, rounded, suffix="exact")

    def _scale(self, value: ir.Value | None) -> tuple[Array, Array]:
        assert value is not None
        return activation_scale(self._reach[str(value.name)], self._scheme.activations, smallest=self._smallest)

    def _pair(self, value: ir.Value) -> ir.Value:
        """The value rounded to 8 bits and back."""
        producer, name = value.producer(), str(value.name)
        module = module_of(producer) if producer is not None else ""
        scale, zero = self._scale(value)
        constants = self._constants(name, scale, zero)
        down = ir.node("QuantizeLinear", [value, *constants], name=f"{module}/QuantizeLinear_{name}")
        _describe(down.outputs[0], f"{name}_quantized", value.shape, ir.DataType.from_numpy(zero.dtype))
        up = ir.node("DequantizeLinear", [down.outputs[0], *constants], name=f"{module}/DequantizeLinear_{name}")
        _describe(up.outputs[0], f"{name}_dequantized", value.shape, ir.DataType.FLOAT)
        if producer is not None:
            self._graph.insert_after(producer, [down, up])
        else:
            self._graph.insert_before(self._graph[0], [down, up])
        return up.outputs[0]

    def _quantize_weight(self, node: ir.Node, least: Array | float) -> Array:
        """Lets the node read its weight from 8 bits; the scales, one an output channel and none below `least`."""
        weight, axis = node.inputs[1], _channel_axis(node)
        array = constant(weight)
        assert weight is not None and array is not None
        scales = channel_scales(array, axis, weight_range=self._scheme.weight_range, smallest=self._smallest)
        scales = np.maximum(scales, least).astype(np.float32)
        key = (weight, axis, scales.tobytes())
        if key not in self._weights:
            along = scales.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
            whole = np.clip(np.rint(array / along), -127, 127).astype(np.int8)
            self._weights[key] = self._stored(node, weight, whole, scales, axis)
        node.replace_input_with(1, self._weights[key])
        return scales

    def _quantize_bias(self, node: ir.Node, bias: _Bias, scales: Array) -> None:
        """Stores the bias in the integers that the products are summed up in."""
        whole = np.rint(bias.array / scales.astype(np.float64)).astype(np.int32)
        bias.reader.replace_input_with(bias.index, self._stored(node, bias.value, whole, scales, 0))

    def _stored(self, node: ir.Node, value: ir.Value, whole: Array, scales: Array, axis: int) -> ir.Value:
        """A constant in integers, and in front of `node` what makes numbers of it."""
        name = str(value.name)
        integers = initializer(self._graph, f"{name}_{whole.dtype}", whole)
        constants = self._constants(name, scales, np.zeros(scales.shape, whole.dtype))
        up = ir.node(
            "DequantizeLinear",
            [integers, *constants],
            {"axis": axis},
            name=f"{module_of(node)}/DequantizeLinear_{name}",
        )
        _describe(up.outputs[0], f"{name}_dequantized", value.shape, ir.DataType.FLOAT)
        self._graph.insert_before(node, up)
        return up.outputs[0]

    def _constants(self, name: str, scale: Array, zero: Array) -> tuple[ir.Value, ir.Value]:
        return (
            initializer(self._graph, f"{name}_scale", scale),
            initializer(self._graph, f"{name}_zero_point", zero),
        )


def _describe(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)


# What a layer is


def _layer(node: ir.Node, total: int) -> Layer:
    count = node_macs(node)
    return Layer(
        name=str(node.name),
        operator=node.op_type,
        multiply_adds=count,
        activation=str(node.inputs[0].name) if node.inputs[0] is not None else "",
        output=str(node.outputs[0].name),
        stays_float=_why_float(node, count / total),
    )


def _why_float(node: ir.Node, share: float) -> str:
    if share < LEAST_SHARE:
        return f"too small to gain by it: {share:.2%} of the multiply-adds"
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    if groups == 1 or static_shape(node.outputs[0])[1] == groups:
        return ""
    return GROUPED if static_shape(node.inputs[1])[1] > 1 else MULTIPLIED


def _weight(node: ir.Node) -> Array | None:
    """The fp32 weights of a layer; None where the node is no layer."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or not is_float(node.inputs[0]):
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or (node.op_type != "Conv" and weight.ndim != 2):
        return None
    return None if constant(node.inputs[0]) is not None or _flag(node, "transA") else weight


def _flag(node: ir.Node, name: str) -> bool:
    return node.attributes.get_int(name, 0) == 1


def _channel_axis(node: ir.Node) -> int:
    """The axis of a layer's weight along which its output channels lie."""
    return 0 if node.op_type == "Conv" or _flag(node, "transB") else 1


@dataclass(frozen=True, slots=True)
class _Bias:
    """A layer's constant bias, and the input that reads it."""

    reader: ir.Node  # the layer, or the Add that alone reads a matrix product
    index: int
    value: ir.Value
    array: Array


def _bias(node: ir.Node) -> _Bias | None:
    reader: ir.Node | None = node
    index = 2
    if node.op_type == "MatMul":
        reader = only_consumer(node.outputs[0])
        if reader is None or reader.op_type != "Add":
            return None
        index = 1 if reader.inputs[0] is node.outputs[0] else 0
    if reader is None or len(reader.inputs) <= index:
        return None
    value = reader.inputs[index]
    array = constant(value)
    channels = static_shape(node.outputs[0])[1 if node.op_type == "Conv" else -1]
    if value is None or array is None or array.shape != (channels,):
        return None
    return _Bias(reader, index, value, array)
