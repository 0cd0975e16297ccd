"""Find the layers that int8 speeds up, and insert QuantizeLinear and DequantizeLinear around them.

A runtime runs in int8 exactly the layers that the graph says; it chooses no ranges of its own. Weights are symmetric
int8 with one scale for each output channel. An activation has one scale, from its smallest and largest value on all
calibration inputs, so that no calibrated value is clipped. Norms, softmax, activation functions, the matmuls of
attention and the residual stream stay in float, and so do layers that int8 would not speed up and those that predict
boxes and scores (`find_layers`). A scheme may add sums of convolutions and other quantized values; `edgevit tune` adds
operators without weights that it has measured to be faster (`find_operators`).

On x86 processors without VNNI the sums of uint8 x int8 products saturate. The default weight range avoids that for any
input (`needs_vnni`). docs/quantization.md compares the accuracy with other quantizers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, initializer, module_of, only_consumer, remove_unused
from edgevit.export.linear import added_bias
from edgevit.export.macs import graph_macs, node_macs, static_shape
from edgevit.export.operators import LAYERS
from edgevit.export.quantization.calibration import ValueRange
from edgevit.export.quantization.channel_scaling import along, channel_magnitudes
from edgevit.export.quantization.conversions import activated, macs_per_conversion
from edgevit.export.quantization.dtypes import is_float, replace_output
from edgevit.export.quantization.groups import (
    MAX_LAYER_GROUPS,
    LayerGroup,
    group_names,
    largest_groups,
    operator_kind,
)
from edgevit.export.quantization.predictions import prediction_nodes
from edgevit.export.quantization.speed_rule import (
    CONVERSIONS,
    FEW_CHANNELS,
    GENERAL_RULE,
    GROUPED,
    TOO_SMALL,
    WITHOUT_WEIGHTS,
    SpeedRule,
    is_slow_by_rule,
)
from edgevit.formats import Int8Range, Int8Scheme
from edgevit.types import Array, Precision

IntegerType: TypeAlias = Literal["uint8", "int8"]

PREDICTS = "predicts boxes or scores, which have more digits than int8"
MAX_PAIR_SUM = 128  # sum of two weights of one sign: 255 * 128 = 32640 fits in int16, 255 * 129 does not
_MAX_BIAS = 2.0**30  # in steps of the int32 accumulator; half of its range is left for the products
_MIN_SCALE: Mapping[Precision, float] = {"fp32": 2.0**-60, "fp16": 2.0**-14}  # normal numbers of the type


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A Conv, Gemm or MatMul with constant weights, or an operator without weights that was measured to gain."""

    name: str  # <PyTorch module path>/<operator>
    operator: str
    macs: int  # for one image
    activation: str  # name of its input
    output: str  # after its ReLU
    second_activation: str = ""  # name of its other input, if that is none of its weights
    skip_reason: str  # why int8 would not speed it up; "" if it would
    groups: tuple[str, str, str]  # its groups: by shape, by size, by kind

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors whose ranges it needs."""
        return tuple(filter(None, (self.activation, self.second_activation, self.output)))

    @property
    def is_slow_by_rule(self) -> bool:
        """Whether it is in float for its speed, which depends on the device, and not for its accuracy."""
        return is_slow_by_rule(self.skip_reason)


def find_layers(graph: OnnxGraph, rule: SpeedRule = GENERAL_RULE) -> tuple[Layer, ...]:
    """Return the layers in the order of the graph. All shapes have to be known: call `check` before.

    Layers that predict boxes or scores are skipped, and so are those that are slow in int8 by `rule`. If that leaves
    less than half of the MACs, slow convolutions are quantized after all; if still too few, prediction layers too.
    """
    total = graph_macs(graph)
    predicting = {str(node.name) for node in prediction_nodes(graph.model)}
    nodes = [node for node in graph.model.graph if float_weight(node) is not None]
    layers = tuple(_layer(node, total, rule, predicting) for node in nodes)
    if rule.min_conversion_macs:
        layers = _leave_between_float(nodes, layers, total, rule.min_conversion_macs)
    for reason in (FEW_CHANNELS, GROUPED, PREDICTS):
        if sum(layer.macs for layer in layers if not layer.skip_reason) >= total / 2:
            break
        layers = tuple(replace(layer, skip_reason="") if layer.skip_reason == reason else layer for layer in layers)
    return layers


def _leave_between_float(
    nodes: Sequence[ir.Node], layers: Sequence[Layer], total_macs: int, min_conversion_macs: int
) -> tuple[Layer, ...]:
    """Return the layers without the convolutions whose conversions cost more than int8 saves.

    One that stays in float adds conversions to its neighbors, so that they are counted again until none is left. If
    less than half of the MACs remain, those with the fewest conversions come back, grouped ones among them.
    """
    reasons = {node: layer.skip_reason for node, layer in zip(nodes, layers, strict=True)}
    while True:
        counts = macs_per_conversion([node for node in nodes if not reasons[node]])
        slow = [node for node, count in counts.items() if count < min_conversion_macs]
        if not slow:
            break
        reasons |= dict.fromkeys(slow, CONVERSIONS)
    back = [node for node in nodes if not reasons[node] or reasons[node] in (CONVERSIONS, GROUPED)]
    counts = macs_per_conversion(back)
    for node in sorted(filter(reasons.__getitem__, counts), key=lambda each: -counts[each]):
        if sum(node_macs(each) for each in nodes if not reasons[each]) >= total_macs / 2:
            break
        reasons[node] = ""
    chosen = ((layer, reasons[node]) for node, layer in zip(nodes, layers, strict=True))
    return tuple(layer if layer.skip_reason == reason else _by_neighbors(layer, reason) for layer, reason in chosen)


def _by_neighbors(layer: Layer, reason: str) -> Layer:
    """Return a layer whose precision its neighbors decide, in groups of its own: others of its shape have the other.

    `reason` is the one for float, or "".
    """
    first, second, third = (f"{'float' if reason else 'int8'}-{name}" for name in layer.groups)
    return replace(layer, skip_reason=reason, groups=(first, second, third))


def find_sums(graph: OnnxGraph, scheme: Int8Scheme) -> tuple[str, ...]:
    """Return the names of the tensors whose ranges a scheme needs beside those of layers: sums before a ReLU."""
    if not scheme.quantize_additions:
        return ()
    sums = [node.outputs[0] for node in graph.model.graph if node.op_type == "Add" and _is_weightless(node)]
    return tuple(str(after.name) for value in sums if (after := activated(value)) is not value)


def find_operators(graph: OnnxGraph, operators: AbstractSet[str]) -> tuple[Layer, ...]:
    """Return the operators without weights that a runtime can run in int8: products, softmax, sums and gates."""
    return tuple(
        _operator(node)
        for node in graph.model.graph
        if node.op_type in operators and not node.domain and _is_weightless(node)
    )


def find_groups(graph: OnnxGraph, scheme: Int8Scheme) -> list[LayerGroup]:
    """Return the groups of layers whose precision is a question of speed, those with the most work first.

    The operators without weights are one group a kind.
    """
    total = graph_macs(graph)
    layers = find_layers(graph, SpeedRule.of(scheme))
    operators = _as_groups(find_operators(graph, scheme.operators), total)
    candidates = [layer for layer in layers if not layer.skip_reason or layer.is_slow_by_rule]
    return [*_as_groups(candidates, total, most=MAX_LAYER_GROUPS), *operators]


def _as_groups(layers: Iterable[Layer], total_macs: int, *, most: int = MAX_LAYER_GROUPS) -> list[LayerGroup]:
    each = ((layer.groups, not layer.skip_reason, layer.macs / total_macs) for layer in layers)
    return largest_groups(each, most=most)


def quantize(
    graph: OnnxGraph, layers: Collection[str], ranges: Mapping[str, ValueRange], *, scheme: Int8Scheme
) -> OnnxGraph:
    """Return the graph with the named layers in int8.

    `ranges` holds the range of each layer's input, and of its output if the scheme quantizes that; a sum that it holds
    the range of is quantized if the scheme takes it in integers (`find_sums`). Layers with the same input share its
    QuantizeLinear; other readers keep the float tensor, but for the sums of the scheme.
    """

    def rewrite(model: ir.Model) -> None:
        _Quantizer(model, ranges, scheme).quantize(frozenset(layers))
        remove_unused(model)  # the fp32 weights

    return graph.apply("quantize", rewrite)


def activation_scale(value_range: ValueRange, dtype: IntegerType, *, min_scale: float = 0.0) -> tuple[Array, Array]:
    """Return the scale and zero point of a tensor. The range is extended to 0, which padding adds."""
    low, high = min(value_range.low, 0.0), max(value_range.high, 0.0)
    if dtype == "int8":
        return np.asarray(max(-low / 127, high / 127, min_scale), np.float32), np.asarray(0, np.int8)
    scale = max((high - low) / 255, min_scale)
    return np.asarray(scale, np.float32), np.asarray(round(-low / scale), np.uint8)


def tensor_scale(value_range: ValueRange, scheme: Int8Scheme) -> tuple[Array, Array]:
    """Return the scale and zero point of a layer's input or output in a scheme."""
    return activation_scale(value_range, scheme.activations, min_scale=_MIN_SCALE[scheme.float_dtype])


def fake_quantized_weight(
    node: ir.Node, scheme: Int8Scheme, input_scale: Array, *, smoothing: Array | None = None
) -> Array:
    """Return the fp32 weight of a layer as int8 has it: rounded to steps of its output channels' scales.

    `smoothing` multiplies its input channels before.
    """
    array, axis = constant(node.inputs[1]), _output_axis(node)
    assert array is not None  # of a layer
    if smoothing is not None:
        array = array * along(input_axis(node), smoothing, array.ndim)
    scales = _weight_scales(array, node, scheme, input_scale)
    rounded: Array = _integers(array, axis, scales) * along(axis, scales, array.ndim)
    return rounded


def _weight_scales(weight: Array, node: ir.Node, scheme: Int8Scheme, input_scale: Array) -> Array:
    """Return the scales of a layer's output channels, so large that an int32 bias fits into its accumulator."""
    least = _MIN_SCALE[scheme.float_dtype]
    scales = channel_scales(weight, _output_axis(node), weight_range=scheme.weight_range, min_scale=least)
    bias = find_bias(node) if scheme.int32_biases else None
    if bias is None:
        return scales
    return np.maximum(scales, np.abs(bias.array) / (input_scale * _MAX_BIAS)).astype(np.float32)


def channel_scales(weight: Array, axis: int, *, weight_range: Int8Range = "full", min_scale: float = 0.0) -> Array:
    """Return the scales of a weight's output channels, (channels,).

    With the "safe" range, the two largest weights of one sign in a channel sum to at most 127.5 steps. Rounding adds at
    most half a step to each, so that their integers sum to at most `MAX_PAIR_SUM`.
    """
    scales: Array = channel_magnitudes(weight, axis) / 127
    if weight_range == "safe":
        scales = np.maximum(scales, _max_pair_sums(weight, axis) / (MAX_PAIR_SUM - 0.5))
    return np.maximum(scales, min_scale).astype(np.float32)


def needs_vnni(graph: OnnxGraph) -> bool:
    """Whether sums of uint8 x int8 products can saturate on an x86 processor without VNNI.

    Such a processor adds the products in pairs in 16-bit integers that saturate (`vpmaddubsw`). The weight layout of
    the runtime decides which products form a pair, but both belong to one output channel. So no pair saturates, for any
    input and any layout, if no two weights of one sign in a channel sum to more than `MAX_PAIR_SUM`.
    """
    for node in graph.model.graph:
        weight = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.dtype == np.int8 and weight.ndim > 1:
            axis = node.attributes.get_int("axis", 1)
            if _max_pair_sums(weight.astype(np.int32), axis).max(initial=0) > MAX_PAIR_SUM:
                return True
    return False


def _integers(weight: Array, axis: int, scales: Array) -> Array:
    """Return the weight in steps of its channels' scales, int8."""
    integers: Array = np.clip(np.rint(weight / along(axis, scales, weight.ndim)), -127, 127).astype(np.int8)
    return integers


def _max_pair_sums(weight: Array, axis: int) -> Array:
    """Return the largest magnitude of the sum of two weights of one sign in each output channel, (channels,)."""
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    magnitudes = np.concatenate([channels, -channels]).clip(0)  # of the positive weights, then of the negative ones
    count = min(2, magnitudes.shape[1])
    sums: Array = np.partition(magnitudes, -count, axis=1)[:, -count:].sum(1).reshape(2, -1).max(0)
    return sums


class _Quantizer:
    """Quantizes layers of one model in place."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, ValueRange], scheme: Int8Scheme) -> None:
        self._graph, self._ranges, self._scheme = model.graph, ranges, scheme
        self._min_scale = _MIN_SCALE[scheme.float_dtype]
        self._weights: dict[tuple[ir.Value, int, bytes], ir.Value] = {}  # dequantized, by weight, axis and scales

    def quantize(self, names: AbstractSet[str]) -> None:
        nodes = [node for node in self._graph if node.name in names]
        layers = [node for node in nodes if float_weight(node) is not None]
        scales = {node: self._scale(node.inputs[0])[0] for node in layers}
        self._quantize_activations(nodes)
        for node in layers:
            bias = find_bias(node) if self._scheme.int32_biases else None
            weight_scales = self._quantize_weight(node, scales[node])
            if bias is not None:
                self._quantize_bias(node, bias, scales[node] * weight_scales)

    def _quantize_activations(self, nodes: Sequence[ir.Node]) -> None:
        """Insert one QDQ pair after each input of the nodes, and after the outputs that the scheme quantizes."""
        quantized_outputs = self._scheme.quantize_outputs_of
        outputs = dict.fromkeys(activated(node.outputs[0]) for node in nodes if node.op_type in quantized_outputs)
        if self._scheme.quantize_shortcuts:
            nodes = [*nodes, *_shortcut_sums(nodes)]
        chosen = {(node, index) for node in nodes for index in _activation_indices(node)}
        inputs = [value for node in nodes for index in _activation_indices(node) if (value := node.inputs[index])]
        if self._scheme.quantize_additions:
            outputs |= dict.fromkeys(self._summed({*inputs, *outputs}, outputs.keys()))
            chosen |= {(node, index) for node in _additions(outputs) for index in (0, 1)}
        for value in dict.fromkeys([*inputs, *outputs]):
            readers = [use for use in value.uses() if value in outputs or (use.node, use.idx) in chosen]
            dequantized = self._insert_qdq(value)
            for use in readers:
                use.node.replace_input_with(use.idx, dequantized)
            if value in outputs and value.is_graph_output():
                replace_output(self._graph, value, dequantized, suffix="exact")

    def _summed(self, values: AbstractSet[ir.Value], outputs: AbstractSet[ir.Value]) -> list[ir.Value]:
        """Return the outputs of sums before a ReLU that float operators alone read, though the sums are of integers.

        `values` are those that are quantized, `outputs` those of layers among them. One output is converted to float
        instead of two inputs, and the sum is taken of integers.
        """
        known, found = set(values), []
        for node in self._graph:
            if node.op_type != "Add" or not known.issuperset(node.inputs) or outputs.isdisjoint(node.inputs):
                continue
            value = activated(node.outputs[0])
            is_new = value is not node.outputs[0] and value not in known
            if is_new and value.name in self._ranges:
                known.add(value)
                found.append(value)
        return found

    def _scale(self, value: ir.Value | None) -> tuple[Array, Array]:
        assert value is not None
        return tensor_scale(self._ranges[str(value.name)], self._scheme)

    def _insert_qdq(self, value: ir.Value) -> ir.Value:
        """Insert QuantizeLinear and DequantizeLinear after a value, and return the dequantized value."""
        producer, name = value.producer(), str(value.name)
        module = module_of(producer) if producer is not None else ""
        scale, zero = self._scale(value)
        constants = self._constants(name, scale, zero)
        quantize = ir.node("QuantizeLinear", [value, *constants], name=f"{module}/QuantizeLinear_{name}")
        quantized = quantize.outputs[0]
        _describe(quantized, f"{name}_quantized", value.shape, ir.DataType.from_numpy(zero.dtype))
        dequantize = ir.node("DequantizeLinear", [quantized, *constants], name=f"{module}/DequantizeLinear_{name}")
        _describe(dequantize.outputs[0], f"{name}_dequantized", value.shape, ir.DataType.FLOAT)
        if producer is not None:
            self._graph.insert_after(producer, [quantize, dequantize])
        else:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        return dequantize.outputs[0]

    def _quantize_weight(self, node: ir.Node, input_scale: Array) -> Array:
        """Replace the node's weight by int8 and a DequantizeLinear; return its scales."""
        weight, axis = node.inputs[1], _output_axis(node)
        array = constant(weight)
        assert weight is not None and array is not None
        scales = _weight_scales(array, node, self._scheme, input_scale)
        key = (weight, axis, scales.tobytes())
        if key not in self._weights:
            self._weights[key] = self._dequantized(node, weight, _integers(array, axis, scales), scales, axis)
        node.replace_input_with(1, self._weights[key])
        return scales

    def _quantize_bias(self, node: ir.Node, bias: Bias, scales: Array) -> None:
        """Store the bias in steps of the int32 accumulator."""
        integers = np.rint(bias.array / scales.astype(np.float64)).astype(np.int32)
        bias.reader.replace_input_with(bias.index, self._dequantized(node, bias.value, integers, scales, 0))

    def _dequantized(self, node: ir.Node, value: ir.Value, integers: Array, scales: Array, axis: int) -> ir.Value:
        """Add an integer constant that replaces `value`, and a DequantizeLinear before `node`; return its output."""
        name = str(value.name)
        stored = initializer(self._graph, f"{name}_{integers.dtype}", integers)
        constants = self._constants(name, scales, np.zeros(scales.shape, integers.dtype))
        dequantize = ir.node(
            "DequantizeLinear",
            [stored, *constants],
            {"axis": axis},
            name=f"{module_of(node)}/DequantizeLinear_{name}",
        )
        _describe(dequantize.outputs[0], f"{name}_dequantized", value.shape, ir.DataType.FLOAT)
        self._graph.insert_before(node, dequantize)
        return dequantize.outputs[0]

    def _constants(self, name: str, scale: Array, zero: Array) -> tuple[ir.Value, ir.Value]:
        return (
            initializer(self._graph, f"{name}_scale", scale),
            initializer(self._graph, f"{name}_zero_point", zero),
        )


def _describe(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)


def _layer(node: ir.Node, total_macs: int, rule: SpeedRule, predicting: AbstractSet[str]) -> Layer:
    macs = node_macs(node)
    skip_reason = rule.skip_reason(node, macs / total_macs)
    return Layer(
        name=str(node.name),
        operator=node.op_type,
        macs=macs,
        activation=str(node.inputs[0].name) if node.inputs[0] is not None else "",
        output=str(activated(node.outputs[0]).name),
        skip_reason=skip_reason or (PREDICTS if node.name in predicting else ""),
        groups=group_names(node, small=skip_reason.startswith(TOO_SMALL)),
    )


def _operator(node: ir.Node) -> Layer:
    """Return an operator without weights; by rule it stays in float."""
    names = [str(value.name) for index in _activation_indices(node) if (value := node.inputs[index]) is not None]
    return Layer(
        name=str(node.name),
        operator=node.op_type,
        macs=node_macs(node),
        activation=names[0],
        second_activation=names[1] if len(names) > 1 else "",
        output=str(activated(node.outputs[0]).name),
        skip_reason=WITHOUT_WEIGHTS,
        groups=(kind := operator_kind(node), kind, kind),
    )


def _is_weightless(node: ir.Node) -> bool:
    """Whether all inputs of an operator are activations, and in float."""
    inputs = [value for value in node.inputs if value is not None]
    return bool(inputs) and all(constant(value) is None and is_float(value) for value in inputs)


def _activation_indices(node: ir.Node) -> range:
    """Return the places of a node's activations among its inputs: the first, or all if it has no weights."""
    return range(len(node.inputs)) if _is_weightless(node) else range(1)


def _shortcut_sums(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Return the Adds whose ReLU is quantized, and whose inputs are each quantized or read by the Add alone.

    One input is the output of a convolution, for which the latter holds. The convolution adds the integers itself, and
    the other value need not be stored in float. That pays in a ResNet, whose sums are quantized behind their ReLU;
    Mobile-Former, whose sums have none, gains nothing and loses 1 to 2 dB.
    """
    nodes = list(nodes)
    quantized = {node.inputs[0] for node in nodes}
    outputs = {node.outputs[0] for node in nodes if node.op_type == "Conv" and only_consumer(node.outputs[0])}
    sums = dict.fromkeys(reader for value in outputs if (reader := only_consumer(value)) and reader.op_type == "Add")
    before_relu = [each for each in sums if activated(each.outputs[0]) in quantized - {each.outputs[0]}]
    return [each for each in before_relu if all(value in quantized | outputs for value in each.inputs)]


def _additions(outputs: Iterable[ir.Value]) -> set[ir.Node]:
    """Return the Adds that read a layer's output, such as residual additions."""
    return {use.node for value in outputs for use in value.uses() if use.node.op_type == "Add"}


def float_weight(node: ir.Node) -> Array | None:
    """Return the fp32 weight of a layer; None if the node is not a layer that can be quantized."""
    if node.domain or node.op_type not in LAYERS or not is_float(node.inputs[0]):
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or (node.op_type != "Conv" and weight.ndim != 2):
        return None
    return None if constant(node.inputs[0]) is not None or _is_set(node, "transA") else weight


def _is_set(node: ir.Node, name: str) -> bool:
    return node.attributes.get_int(name, 0) == 1


def _output_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in a layer's weight."""
    return 0 if node.op_type == "Conv" or _is_set(node, "transB") else 1


def channel_axis(node: ir.Node) -> int:
    """Return the axis of the channels in a layer's input and output."""
    return 1 if node.op_type == "Conv" else -1


def input_axis(node: ir.Node) -> int:
    """Return the axis of the input channels, of a group if it is grouped, in a layer's weight."""
    return 1 if node.op_type == "Conv" or _is_set(node, "transB") else 0


@dataclass(frozen=True, slots=True)
class Bias:
    """The constant bias of a layer."""

    reader: ir.Node  # the layer, or the Add that is the only reader of a matmul
    index: int  # position of the bias among the reader's inputs
    value: ir.Value
    array: Array


def find_bias(node: ir.Node) -> Bias | None:
    """Return the constant bias of a layer; None if it has none."""
    channels = static_shape(node.outputs[0])[channel_axis(node)]
    if node.op_type == "MatMul":
        added = added_bias(node.outputs[0], channels)
        return None if added is None else Bias(added.addition, added.index, added.value, added.array)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(value)
    if value is None or array is None or array.shape != (channels,):
        return None
    return Bias(node, 2, value, array)
