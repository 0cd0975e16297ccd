"""int8: placement and types of QuantizeLinear and DequantizeLinear, and the error that they add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from edgevit import cpu
from edgevit.cpu import saturates_int8
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.macs import graph_macs
from edgevit.export.quantization.calibration import ValueRange, collect_ranges
from edgevit.export.quantization.emulation import emulate_fp16
from edgevit.export.quantization.fp16 import to_fp16
from edgevit.export.quantization.int8 import (
    activation_scale,
    channel_scales,
    find_layers,
    find_operators,
    find_sums,
    needs_vnni,
    quantize,
)
from edgevit.export.quantization.speed_rule import CHANNEL_MULTIPLIER, FEW_CHANNELS, GROUPED, SpeedRule
from edgevit.formats import Int8Range, Int8Scheme
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import PROVIDER, OnnxRuntimeEngine, profile_session
from edgevit.types import Array
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import HEADER, noise, parse
from tests.helpers.quantization import checked_graph, load, output, snr_db
from tests.helpers.saturation import emulate_saturation

every_scheme = pytest.mark.parametrize("fmt", INT8_SCHEMES)


def quantized(
    graph: OnnxGraph,
    *images: Array,
    scheme: Int8Scheme = INT8_SCHEMES["openvino"],
    names: tuple[str, ...] | None = None,
) -> OnnxGraph:
    """Quantize the named layers, or all that int8 speeds up, and check that the result is valid."""
    ranges = collect_ranges(graph, [{"x": image} for image in images], load=load)
    chosen = [layer.name for layer in find_layers(graph) if not layer.skip_reason] if names is None else names
    result = quantize(graph, chosen, ranges, scheme=scheme)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    values = [value.name for node in result.model.graph for value in node.outputs]
    assert len(set(values)) == len(values)
    assert all(
        value.shape is not None and value.dtype is not None for node in result.model.graph for value in node.outputs
    )
    return result


@dataclass(frozen=True)
class QuantizedInput:
    """An input of a node, or the output of a DequantizeLinear, seen through the QDQ pair."""

    dtype: str  # of the integers; FLOAT if it is not quantized
    scale: Array
    zero: Array
    axis: int
    source: str  # the tensor that is quantized, or the weight


def quantized_input(graph: OnnxGraph, node: str, index: int = 0) -> QuantizedInput:
    reader = next(each for each in graph.model.graph if each.outputs[0].name == node)
    value = reader.inputs[index]
    assert value is not None
    dequantize = reader if reader.op_type == "DequantizeLinear" else value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return QuantizedInput(str(value.dtype), np.ones(0), np.ones(0), -1, str(value.name))
    integers, scale, zero = dequantize.inputs[0], constant(dequantize.inputs[1]), constant(dequantize.inputs[2])
    assert integers is not None and scale is not None and zero is not None
    assert zero.dtype == integers.dtype.numpy()  # type: ignore[union-attr]
    producer = integers.producer()
    source = str((producer.inputs[0] if producer is not None else integers).name)  # type: ignore[union-attr]
    if producer is not None:  # quantized and dequantized with the same constants
        assert (producer.op_type, *producer.inputs[1:]) == ("QuantizeLinear", *dequantize.inputs[1:])
    return QuantizedInput(str(integers.dtype), scale, zero, dequantize.attributes.get_int("axis", 1), source)


def qdq_counts(graph: OnnxGraph) -> tuple[int, int]:
    """Return the number of QuantizeLinear and DequantizeLinear nodes."""
    return graph.operators["QuantizeLinear"], graph.operators["DequantizeLinear"]


def constant_types(graph: OnnxGraph) -> dict[str, str]:
    """Return the types of the constants that are not scales or zero points, by name."""
    return {
        name: str(value.dtype)
        for name, value in graph.model.graph.initializers.items()
        if "_scale" not in name and "_zero_point" not in name
    }


# Layers


def convolution(channels: int, groups: int = 1) -> str:
    return f"""(float[batch, 4, 6, 6] x) => (float[batch, {channels}, 6, 6] y) {{
        a = Conv <group = {groups}, pads = [1, 1, 1, 1]> (x, w, b)
        y = Relu (a)
    }}"""


GEMM = "(float[batch, 6] x) => (float[batch, 5] y) { a = Gemm (x, w, b)  y = Relu (a) }"
GEMM_T = "(float[batch, 6] x) => (float[batch, 5] y) { a = Gemm <transB = 1> (x, w, b)  y = Relu (a) }"
MATMUL = "(float[batch, 7, 6] x) => (float[batch, 7, 5] y) { a = MatMul (x, w)  c = Add (a, b)  y = Relu (c) }"
MATMUL_B = "(float[batch, 7, 6] x) => (float[batch, 7, 5] y) { a = MatMul (x, w)  c = Add (b, a)  y = Relu (c) }"


@dataclass(frozen=True)
class Case:
    """A graph with one layer `a`, its weight `w` and its bias `b`."""

    text: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    axis: int  # of the weight's output channels
    macs: int
    operator: str
    biased: str = "a"  # the output of the node that adds the bias
    bias_index: int = 2

    @property
    def channels(self) -> int:
        return self.weight[self.axis]

    def graph(self, *, weight: Array | None = None, bias: Array | None = None) -> OnnxGraph:
        w = noise(*self.weight, scale=0.3, seed=1) if weight is None else weight
        return checked_graph(self.text, w=w, b=noise(self.channels, seed=2) if bias is None else bias)

    def image(self, *, seed: int = 3) -> Array:
        return noise(*self.input, seed=seed)


CASES = {
    "Conv": Case(convolution(8), (8, 4, 3, 3), (2, 4, 6, 6), 0, 8 * 36 * 4 * 9, "Conv"),
    "depthwise Conv": Case(convolution(4, groups=4), (4, 1, 3, 3), (2, 4, 6, 6), 0, 4 * 36 * 9, "Conv"),
    "Gemm": Case(GEMM, (6, 5), (2, 6), 1, 30, "Gemm"),
    "Gemm transB": Case(GEMM_T, (5, 6), (2, 6), 0, 30, "Gemm"),
    "MatMul Add": Case(MATMUL, (6, 5), (2, 7, 6), 1, 7 * 30, "MatMul", "c", 1),
    "Add MatMul": Case(MATMUL_B, (6, 5), (2, 7, 6), 1, 7 * 30, "MatMul", "c", 0),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_a_layer_has_its_name_and_macs(case: Case) -> None:
    (layer,) = find_layers(case.graph())
    output = "a" if case.operator == "MatMul" else "y"  # after the ReLU, unless a bias is added first
    assert (layer.name, layer.operator, layer.activation, layer.output) == ("net/a", case.operator, "x", output)
    assert (layer.macs, layer.skip_reason) == (case.macs, "")
    assert graph_macs(case.graph()) == case.macs


@pytest.mark.parametrize(
    ("groups", "alone", "beside"),
    [(4, CHANNEL_MULTIPLIER, CHANNEL_MULTIPLIER), (2, "", GROUPED), (1, "", "")],
    ids=["4", "2", "1"],
)
def test_a_grouped_convolution_is_skipped_next_to_larger_layers(groups: int, alone: str, beside: str) -> None:
    """With a channel multiplier always; with fewer groups than channels unless they do most of the MACs."""
    weight = noise(8, 4 // groups, 3, 3, seed=0)
    (layer,) = find_layers(checked_graph(convolution(8, groups), w=weight, b=noise(8, seed=0)))
    assert layer.skip_reason == alone
    assert layer.macs == 8 * 36 * 4 // groups * 9
    text = f"""(float[batch, 4, 6, 6] x) => (float[batch, 64, 6, 6] y) {{
        a = Conv <group = {groups}, pads = [1, 1, 1, 1]> (x, w)
        y = Conv <pads = [1, 1, 1, 1]> (a, large)
    }}"""
    first, second = find_layers(checked_graph(text, w=weight, large=noise(64, 8, 3, 3, seed=0)))
    assert (first.skip_reason, second.skip_reason) == (beside, "")


@pytest.mark.parametrize(
    ("fmt", "flags", "grouped"),
    [
        ("openvino", "avx2 avx_vnni", ""),
        ("openvino", "avx2", GROUPED),
        ("openvino", "avx2 avx_vnni avx512f avx512_vnni", GROUPED),
        ("openvino", "avx2 avx_vnni avx512f avx512_vnni amx_int8", GROUPED),
        ("ort", "avx2 avx_vnni", GROUPED),  # of 4 inputs
    ],
)
def test_openvino_runs_grouped_convolutions_in_int8_with_avx_vnni_alone(
    fmt: str, flags: str, grouped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    text = """(float[batch, 8, 6, 6] x) => (float[batch, 64, 6, 6] y) {
        a = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)
        b = Conv <group = 8, pads = [1, 1, 1, 1]> (a, multiplied)
        y = Conv <pads = [1, 1, 1, 1]> (b, large)
    }"""
    weights = {"w": noise(8, 4, 3, 3, seed=0), "multiplied": noise(16, 1, 3, 3, seed=0)}
    graph = checked_graph(text, **weights, large=noise(64, 16, 3, 3, seed=0))
    layers = find_layers(graph, SpeedRule.of(INT8_SCHEMES[fmt]))
    assert [layer.skip_reason for layer in layers] == [grouped, CHANNEL_MULTIPLIER, ""]


@pytest.mark.parametrize(("inputs", "outputs", "reason"), [(4, 8, ""), (5, 8, GROUPED), (8, 15, GROUPED), (8, 12, "")])
def test_groups_that_openvino_does_not_vectorize_stay_in_float(
    inputs: int, outputs: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    text = f"""(float[batch, {2 * inputs}, 6] x) => (float[batch, 512, 6] y) {{
        a = Conv <group = 2> (x, w)
        y = Conv (a, large)
    }}"""
    weights = {"w": noise(2 * outputs, inputs, 1, seed=0), "large": noise(512, 2 * outputs, 1, seed=0)}
    layers = find_layers(checked_graph(text, **weights), SpeedRule.of(INT8_SCHEMES["openvino"]))
    assert [layer.skip_reason for layer in layers] == [reason, ""]


def test_onnx_runtime_runs_wide_groups_in_int8_with_avx_vnni_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    text = """(float[batch, 128, 6] x) => (float[batch, 512, 6] y) {
        a = Conv <group = 2> (x, wide)
        b = Conv <group = 4> (a, narrow)
        y = Conv (b, large)
    }"""
    weights = {"wide": noise(128, 64, 1, seed=0), "narrow": noise(128, 32, 1, seed=0)}
    graph = checked_graph(text, **weights, large=noise(512, 128, 1, seed=0))
    layers = find_layers(graph, SpeedRule.of(INT8_SCHEMES["ort"]))
    assert [layer.skip_reason for layer in layers] == ["", GROUPED, ""]


@pytest.mark.parametrize(
    ("fmt", "positions", "inputs", "reason"),
    [("ort", 16, 128, ""), ("ort", 17, 128, GROUPED), ("ort", 16, 124, GROUPED), ("openvino", 16, 128, GROUPED)],
)
def test_onnx_runtime_runs_wide_groups_on_few_positions_in_int8(
    fmt: str, positions: int, inputs: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading their weights takes longer than multiplying them, on processors with other instructions too."""
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2"}))
    text = f"""(float[batch, {2 * inputs}, {positions}] x) => (float[batch, 512, {positions}] y) {{
        a = Conv <group = 2> (x, grouped)
        y = Conv (a, large)
    }}"""
    weights = {"grouped": noise(128, inputs, 1, seed=0), "large": noise(512, 128, 1, seed=0)}
    layers = find_layers(checked_graph(text, **weights), SpeedRule.of(INT8_SCHEMES[fmt]))
    assert [layer.skip_reason for layer in layers] == [reason, ""]


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "dilation", "width", "reason"),
    [
        (3, 33, 3, 1, 56, FEW_CHANNELS),  # 99 multiply-adds at a position
        (3, 34, 3, 1, 56, ""),  # 102
        (3, 66, 3, 2, 56, FEW_CHANNELS),  # 198 at a position that is alone
        (3, 67, 3, 2, 56, ""),  # 201
        (3, 16, 1, 1, 56, ""),  # nothing is gathered
        (3, 33, 3, 1, 55, ""),  # a map smaller than 56 x 56
    ],
)
def test_a_convolution_of_few_channels_stays_in_float_in_onnx_runtime(
    channels: int, outputs: int, kernel: int, dilation: int, width: int, reason: str
) -> None:
    pad = dilation * (kernel // 2)
    text = f"""(float[batch, {channels}, 56, {width}] x) => (float[batch, 512, 56, {width}] y) {{
        a = Conv <dilations = [{dilation}, {dilation}], pads = [{pad}, {pad}, {pad}, {pad}]> (x, w)
        y = Conv (a, large)
    }}"""
    weights = {"w": noise(outputs, channels, kernel, kernel, seed=0), "large": noise(512, outputs, 1, 1, seed=0)}
    graph = checked_graph(text, **weights)
    assert [layer.skip_reason for layer in find_layers(graph, SpeedRule.of(INT8_SCHEMES["ort"]))] == [reason, ""]
    assert find_layers(graph, SpeedRule.of(INT8_SCHEMES["openvino"]))[0].skip_reason == ""


def test_a_convolution_of_few_channels_is_int8_if_it_does_most_of_the_work() -> None:
    text = """(float[batch, 4, 58, 58] x) => (float[batch, 8, 56, 56] y) {
        y = Conv (x, w)
    }"""
    rule = SpeedRule.of(INT8_SCHEMES["ort"])
    (layer,) = find_layers(checked_graph(text, w=noise(8, 4, 3, 3, seed=0)), rule)
    assert layer.skip_reason == ""


def test_a_small_layer_is_skipped() -> None:
    """1,000 of a million MACs is the smallest layer that is quantized."""
    text = """(float[batch, 1000] x) => (float[batch, 1] y) {
        a = MatMul (x, w)
        b = MatMul (a, first)
        y = MatMul (b, second)
    }"""
    original = checked_graph(
        text, w=noise(1000, 1000, seed=0), first=noise(1000, 2, seed=0), second=noise(2, 1, seed=0)
    )
    assert [bool(layer.skip_reason) for layer in find_layers(original)] == [False, False, True]
    assert find_layers(original)[2].skip_reason == "too small to gain speed: 0.00% of all MACs"


@pytest.mark.parametrize(("rows", "skipped"), [(255, True), (256, False)])
def test_a_layer_of_few_macs_and_many_weights_is_quantized(rows: int, skipped: bool) -> None:
    """128 KB of weights take longer to read than their MACs."""
    text = f"""(float[batch, 64, 64, 64] x, float[batch, {rows}] v) => (float[batch, 64, H, W] y, float[batch, n] z) {{
        y = Conv <pads = [1, 1, 1, 1]> (x, large)
        z = MatMul (v, w)
    }}"""
    layers = find_layers(checked_graph(text, large=noise(64, 64, 3, 3, seed=0), w=noise(rows, 128, seed=1)))
    assert [bool(layer.skip_reason) for layer in layers] == [False, skipped]


ATTENTION = """(float[batch, 5, 6] x) => (float[batch, 5, 6] y) {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, t)
    p = Softmax (s)
    y = MatMul (p, q)
}"""


def test_a_matmul_of_two_activations_is_not_a_layer_but_has_macs() -> None:
    original = checked_graph(ATTENTION, wq=noise(6, 6, seed=0), wk=noise(6, 6, seed=1))
    assert [layer.name for layer in find_layers(original)] == ["net/q", "net/k"]
    assert graph_macs(original) == 2 * 5 * 36 + 2 * 5 * 5 * 6
    result = quantized(original, noise(2, 5, 6, seed=0))
    assert {quantized_input(result, name, index).dtype for name in ("s", "y") for index in (0, 1)} == {"FLOAT"}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_not_a_layer_but_has_macs(groups: int) -> None:
    """It stays in float, so the fraction of MACs in int8 has to count it."""
    original = checked_graph(
        f"""(float[batch, 4, 6, 6] x) => (float[batch, {8 * groups}, 12, 12] y) {{
              y = ConvTranspose <kernel_shape = [4, 4], strides = [2, 2], pads = [1, 1, 1, 1], group = {groups}> (x, w)
            }}""",
        w=noise(4, 8, 4, 4, seed=0),
    )
    assert find_layers(original) == ()
    assert graph_macs(original) == 4 * 36 * 8 * 16


def test_a_matmul_with_a_vector_has_macs() -> None:
    original = checked_graph("(float[batch, 6] x) => (float[batch] y) { y = MatMul (x, v) }", v=noise(6, seed=0))
    assert graph_macs(original) == 6
    assert find_layers(original) == ()


@pytest.mark.parametrize(
    "text",
    [
        "(float[6, 3] x) => (float[3, 5] y) { y = Gemm <transA = 1> (x, w) }",
        "(float[5, 3] x) => (float[6, 3] y) { y = MatMul (w, x) }",  # the weight is on the left
        "(float[3, 6] x) => (float[3, 5] y) { d = Relu (x)  a = MatMul (w, v)  c = MatMul (d, a)  y = Relu (c) }",
    ],
)
def test_a_layer_has_a_constant_weight_on_the_right(text: str) -> None:
    assert find_layers(checked_graph(text, w=noise(6, 5, seed=0), v=noise(5, 5, seed=0))) == ()


class Windows(nn.Module):
    """Four windows per image, as in window attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.after = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = self.inside(x.reshape(4 * x.shape[0], 2, 6))  # (4 B, 2, 5)
        result: torch.Tensor = self.after(windows.reshape(x.shape[0], 8, 5))
        return result


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_batch_that_is_reshaped_to_windows_has_macs(dynamic: bool) -> None:
    example = (torch.zeros(2 if dynamic else 1, 8, 6),)
    captured = capture(Windows(), example, dynamic_batch=dynamic).graph
    original = check(passes.specialize(passes.optimize(captured), "onnx"))
    assert [layer.macs for layer in find_layers(original)] == [8 * 6 * 5, 8 * 5 * 3]
    assert graph_macs(original) == 8 * 6 * 5 + 8 * 5 * 3


# Placement and types


@every_scheme
@every_case
def test_a_layer_reads_integers_in_each_scheme(case: Case, fmt: str) -> None:
    scheme = INT8_SCHEMES[fmt]
    result = quantized(case.graph(), case.image(), scheme=scheme)
    x, w = quantized_input(result, "a"), quantized_input(result, "a", 1)
    assert (x.dtype, x.source) == (scheme.activations.upper(), "x")
    assert x.scale.shape == x.zero.shape == ()
    assert (w.dtype, w.axis) == ("INT8", case.axis)
    assert w.scale.shape == (case.channels,)
    assert not w.zero.any()
    biased = quantized_input(result, case.biased, case.bias_index)
    assert biased.dtype == ("INT32" if scheme.int32_biases else "FLOAT")
    if scheme.int32_biases:
        assert np.array_equal(biased.scale, x.scale * w.scale)
        assert not biased.zero.any()
    output_quantized = case.operator in scheme.quantize_outputs_of
    assert quantized_input(result, "y").dtype == ("UINT8" if output_quantized else "FLOAT")
    assert qdq_counts(result) == (1 + output_quantized, 2 + output_quantized + scheme.int32_biases)
    assert constant_types(result) == {
        "w_int8": "INT8",
        **({"b_int32": "INT32"} if scheme.int32_biases else {"b": "FLOAT"}),
    }


@every_scheme
def test_activations_are_symmetric_for_tensorrt_and_have_a_zero_point_for_the_others(fmt: str) -> None:
    case = CASES["Conv"]
    result = quantized(case.graph(), case.image() + 1, scheme=INT8_SCHEMES[fmt])
    x = quantized_input(result, "a")
    if fmt.startswith("trt"):
        assert (x.dtype, int(x.zero)) == ("INT8", 0)
        assert INT8_SCHEMES[fmt].float_dtype == "fp16"
    else:
        assert x.dtype == "UINT8"
        assert 0 < int(x.zero) < 128
        assert INT8_SCHEMES[fmt].float_dtype == "fp32"


@pytest.mark.parametrize("fmt", [fmt for fmt, scheme in INT8_SCHEMES.items() if scheme.float_dtype == "fp16"])
@every_case
def test_everything_else_becomes_fp16(case: Case, fmt: str) -> None:
    """Scales too, and the outputs hold."""
    original, image = case.graph(), case.image()
    result, _ = to_fp16(quantized(original, image, scheme=INT8_SCHEMES[fmt]), [{"x": image}], load=load)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    for index in (0, 1):
        found = quantized_input(result, "a", index)
        assert (found.dtype, str(found.scale.dtype)) == ("INT8", "float16")
        assert (found.scale >= np.float32(2.0**-14)).all()
    assert snr_db(output(original, image), output(emulate_fp16(result), image)) > 30


def test_layers_with_the_same_input_share_one_qdq_pair_and_the_residual_stays_float() -> None:
    text = """(float[batch, 5, 6] x) => (float[batch, 5, 6] y) {
        h = Relu (x)
        a = MatMul (h, w)
        b = MatMul (h, v)
        c = Add (a, b)
        y = Add (h, c)
    }"""
    result = quantized(checked_graph(text, w=noise(6, 6, seed=0), v=noise(6, 6, seed=1)), noise(2, 5, 6, seed=0))
    assert qdq_counts(result) == (1, 3)
    assert quantized_input(result, "a").source == quantized_input(result, "b").source == "h"
    assert quantized_input(result, "y", 0).dtype == "FLOAT"
    assert quantized_input(result, "y", 0).source == "h"


def test_layers_that_are_not_named_are_not_changed() -> None:
    text = """(float[batch, 5, 6] x) => (float[batch, 5, 6] y) {
        a = MatMul (x, w)
        b = MatMul (x, v)
        y = Add (a, b)
    }"""
    result = quantized(
        checked_graph(text, w=noise(6, 6, seed=0), v=noise(6, 6, seed=1)), noise(2, 5, 6, seed=0), names=("net/b",)
    )
    assert [quantized_input(result, "a", index).source for index in (0, 1)] == ["x", "w"]
    assert [quantized_input(result, "b", index).dtype for index in (0, 1)] == ["UINT8", "INT8"]
    assert constant_types(result) == {"w": "FLOAT", "v_int8": "INT8"}


def test_the_given_graph_is_not_changed() -> None:
    original = CASES["Conv"].graph()
    content = original.to_bytes()
    result = quantized(original, CASES["Conv"].image())
    assert original.to_bytes() == content
    assert result.history[-1].name == "quantize"
    assert [spec.name for spec in (*result.inputs, *result.outputs)] == ["x", "y"]


@every_scheme
def test_a_layer_with_a_graph_output_keeps_its_name(fmt: str) -> None:
    text = "(float[batch, 4, 6, 6] x) => (float[batch, 8, 6, 6] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }"
    original, image = checked_graph(text, w=noise(8, 4, 3, 3, seed=0), b=noise(8, seed=0)), noise(2, 4, 6, 6, seed=0)
    result = quantized(original, image, scheme=INT8_SCHEMES[fmt])
    assert [spec.name for spec in result.outputs] == ["y"]
    assert snr_db(output(original, image), output(result, image)) > 30


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[batch, 8, 6, 6] y", "y = Conv (x, w)"),
        ("float[batch, 8, 6, 6] a, float[batch, 8, 6, 6] y", "a = Conv (x, w)  y = Relu (a)"),
    ],
)
def test_a_convolution_with_a_graph_output_runs_in_int8(outputs: str, body: str) -> None:
    """ONNX Runtime needs its output quantized."""
    original = checked_graph(f"(float[batch, 4, 8, 8] x) => ({outputs}) {{ {body} }}", w=noise(8, 4, 3, 3, seed=0))
    typed = quantized(original, noise(2, 4, 8, 8, seed=0), scheme=INT8_SCHEMES["ort"])
    engine = OnnxRuntimeEngine(onnxruntime, typed.to_bytes(), BuildOptions(threads=1, precision="int8"))
    assert engine.executed_precision().fraction("int8") == 1


@every_scheme
def test_a_shared_weight_is_stored_once(fmt: str) -> None:
    text = """(float[batch, 6] x) => (float[batch, 6] y) {
        a = Gemm (x, w, b)
        c = Relu (a)
        y = Gemm (c, w, b)
    }"""
    original, image = checked_graph(text, w=noise(6, 6, scale=0.4, seed=0), b=noise(6, seed=0)), noise(2, 6, seed=0)
    result = quantized(original, image, scheme=INT8_SCHEMES[fmt])
    assert [name for name, dtype in constant_types(result).items() if dtype == "INT8"] == ["w_int8"]
    assert quantized_input(result, "a", 1).source == quantized_input(result, "y", 1).source == "w_int8"
    if INT8_SCHEMES[fmt].int32_biases:  # in steps of each layer
        assert [name for name, dtype in constant_types(result).items() if dtype == "INT32"] == ["b_int32", "b_int32_1"]
    assert snr_db(output(original, image), output(result, image)) > 25


def test_a_weight_that_is_used_along_both_axes_has_scales_for_each() -> None:
    text = """(float[batch, 6] x) => (float[batch, 6] y) {
        a = Gemm (x, w)
        y = Gemm <transB = 1> (a, w)
    }"""
    original, image = checked_graph(text, w=noise(6, 6, seed=0)), noise(2, 6, seed=0)
    result = quantized(original, image)
    assert [quantized_input(result, name, 1).axis for name in ("a", "y")] == [1, 0]
    assert snr_db(output(original, image), output(result, image)) > 25


def test_a_weight_shared_with_a_float_layer_is_kept_in_float_too() -> None:
    text = """(float[batch, 6] x) => (float[batch, 6] y) {
        a = Gemm (x, w)
        y = Gemm (a, w)
    }"""
    result = quantized(checked_graph(text, w=noise(6, 6, seed=0)), noise(2, 6, seed=0), names=("net/y",))
    assert constant_types(result) == {"w": "FLOAT", "w_int8": "INT8"}


def test_a_quantized_output_is_quantized_once_for_all_readers() -> None:
    text = """(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
        a = Conv (x, w)
        b = Conv (a, v)
        y = Add (a, b)
    }"""
    original, image = (
        checked_graph(text, w=noise(4, 4, 1, 1, seed=0), v=noise(4, 4, 1, 1, seed=1)),
        noise(2, 4, 6, 6, seed=0),
    )
    result = quantized(original, image, scheme=INT8_SCHEMES["ort"])
    assert qdq_counts(result) == (3, 5)  # x, a and b; two weights
    assert quantized_input(result, "b").source == quantized_input(result, "y").source == "a"
    assert quantized_input(result, "y", 1).source == "b"
    without_outputs = quantized(original, image)
    assert qdq_counts(without_outputs) == (2, 4)
    assert [quantized_input(without_outputs, "y", index).dtype for index in (0, 1)] == ["FLOAT", "FLOAT"]


def run_operators(graph: OnnxGraph) -> set[str]:
    """Return the operators that ONNX Runtime makes of a graph."""

    def loaded(settings: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(graph.to_bytes(), settings, providers=[PROVIDER])

    _, events = profile_session(loaded, onnxruntime.SessionOptions())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


BLOCK = """(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
    s = Conv (x, w)
    r = Relu (s)
    p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)
    a = Conv (p, v)
    t = Add (a, p)
    u = Relu (t)
    y = Conv (u, w)
}"""


def test_onnx_runtime_adds_residuals_and_pools_in_integers() -> None:
    weights = {"w": noise(4, 4, 1, 1, seed=0), "v": noise(4, 4, 1, 1, seed=1)}
    original, image = checked_graph(BLOCK, **weights), noise(2, 4, 6, 6, seed=2)
    result = quantized(original, image, scheme=INT8_SCHEMES["ort"])
    assert quantized_input(result, "p").source == "r"  # with the ReLU, whose zero is that of the integers
    assert [quantized_input(result, "t", index).source for index in (0, 1)] == ["a", "p"]
    assert snr_db(output(original, image), output(result, image)) > 30
    assert {"QLinearAdd", "NhwcMaxPool"} <= run_operators(result)
    without = quantized(original, image, scheme=INT8_SCHEMES["onnx"])
    assert [quantized_input(without, "t", index).dtype for index in (0, 1)] == ["FLOAT", "FLOAT"]


LAST_SUMS = """(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
    a = Conv (x, w)
    t = Add (a, x)
    u = Relu (t)
    b = Conv (x, v)
    s = Add (b, u)
    r = Relu (s)
    y = Sigmoid (r)
}"""


def test_onnx_runtime_writes_sums_of_integers_as_integers_that_float_operators_read() -> None:
    weights = {"w": noise(4, 4, 1, 1, seed=0), "v": noise(4, 4, 1, 1, seed=1)}
    original, image = checked_graph(LAST_SUMS, **weights), noise(2, 4, 6, 6, seed=2)
    scheme = INT8_SCHEMES["ort"]
    result = quantized(original, image, scheme=scheme)
    assert [quantized_input(result, "s", index).source for index in (0, 1)] == ["b", "u"]
    assert quantized_input(result, "y").source == "r"
    assert "Add" not in run_operators(result)
    assert snr_db(output(original, image), output(result, image)) > 30
    assert {"u", "r"} <= {*find_sums(original, scheme)}  # so that they are calibrated
    one = quantized(original, image, scheme=scheme, names=("net/b",))  # of integers and floats
    assert quantized_input(one, "y").dtype == "FLOAT"
    ranges = collect_ranges(original, [{"x": image}], load=load)
    del ranges["r"]
    assert quantized_input(quantize(original, ["net/a", "net/b"], ranges, scheme=scheme), "y").dtype == "FLOAT"


def test_other_sums_are_read_in_float() -> None:
    text = "(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) { a = Conv (x, w) t = Add (a, x) y = Sigmoid (t) }"
    original = checked_graph(text, w=noise(4, 4, 1, 1, seed=0))
    result = quantized(original, noise(2, 4, 6, 6, seed=2), scheme=INT8_SCHEMES["ort"])
    assert quantized_input(result, "y").dtype == "FLOAT"
    assert find_sums(original, INT8_SCHEMES["ort"]) == ()


def test_openvino_adds_residuals_before_a_relu_in_integers() -> None:
    weights = {"w": noise(4, 4, 1, 1, seed=0), "v": noise(4, 4, 1, 1, seed=1)}
    original, image = checked_graph(BLOCK, **weights), noise(2, 4, 6, 6, seed=2)
    result = quantized(original, image)
    assert [quantized_input(result, "t", index).source for index in (0, 1)] == ["a", "p"]
    assert quantized_input(result, "r").dtype == quantized_input(result, "u").dtype == "FLOAT"  # only the sum's inputs
    assert snr_db(output(original, image), output(result, image)) > 30


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv (x, w)  t = Add (a, x)  y = Conv (t, v)",  # no ReLU: Mobile-Former
        "a = Conv (x, w)  t = Add (a, x)  u = Relu (t)  s = Sigmoid (u)  y = Conv (s, v)",  # its ReLU is in float
        "a = Conv (x, w)  s = Sigmoid (a)  t = Add (a, x)  u = Relu (t)  c = Conv (u, v)  y = Add (c, s)",  # read twice
        "a = Conv (x, w)  s = Sigmoid (x)  t = Add (a, s)  u = Relu (t)  y = Conv (u, v)",  # the other is in float
        "a = Conv (x, w)  t = Sub (a, x)  u = Relu (t)  y = Conv (u, v)",
    ],
)
def test_other_sums_of_convolutions_stay_in_float_in_openvino(body: str) -> None:
    text = f"(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {{ {body} }}"
    graph = checked_graph(text, w=noise(4, 4, 1, 1, seed=0), v=noise(4, 4, 1, 1, seed=1))
    result = quantized(graph, noise(2, 4, 6, 6, seed=2))
    assert [quantized_input(result, "t", index).dtype for index in (0, 1)] == ["FLOAT", "FLOAT"]


GATED_ATTENTION = """(float[batch, 6, 8] x) => (float[batch, 6, 8] y) {
    q = MatMul (x, w)
    k = Transpose <perm = [0, 2, 1]> (x)
    a = MatMul (q, k)
    b = Mul (a, scale)
    p = Softmax (b)
    o = MatMul (p, x)
    g = Mul (o, q)
    y = Add (g, x)
}"""


def gated_attention() -> OnnxGraph:
    return checked_graph(GATED_ATTENTION, w=noise(8, 8, seed=0), scale=np.asarray(0.5, np.float32))


def test_the_operators_without_weights_are_found_that_a_runtime_runs_in_int8() -> None:
    found = {
        fmt: {(each.name, each.operator) for each in find_operators(gated_attention(), scheme.operators)}
        for fmt, scheme in INT8_SCHEMES.items()
    }
    products = {("net/a", "MatMul"), ("net/o", "MatMul")}
    assert found["openvino"] == {*products, ("net/g", "Mul"), ("net/y", "Add")}
    assert found["ort"] == {*found["openvino"], ("net/p", "Softmax")}
    assert not found["trt"] and not found["onnx"]  # not measured there
    product, *_ = find_operators(gated_attention(), frozenset({"MatMul"}))
    assert (product.tensors, product.macs) == (("q", "k", "a"), 6 * 6 * 8)
    assert product.is_slow_by_rule and product.groups[0] == "product-of-activations"


@pytest.mark.parametrize(("name", "kernel"), [("a", "MatMulIntegerToFloat"), ("p", "QLinearSoftmax")])
def test_an_operator_without_weights_runs_in_integers(name: str, kernel: str) -> None:
    original, image = gated_attention(), noise(2, 6, 8, seed=1)
    result = quantized(original, image, scheme=INT8_SCHEMES["ort"], names=(f"net/{name}",))
    assert quantized_input(result, name).dtype == "UINT8"
    assert kernel in run_operators(result)
    assert snr_db(output(original, image), output(result, image)) > 30


@pytest.mark.parametrize(("name", "sources"), [("o", ["p", "x"]), ("g", ["o", "q"]), ("y", ["g", "x"])])
def test_both_inputs_of_an_operator_without_weights_are_integers(name: str, sources: list[str]) -> None:
    original, image = gated_attention(), noise(2, 6, 8, seed=1)
    result = quantized(original, image, names=(f"net/{name}",))
    assert [quantized_input(result, name, index).source for index in (0, 1)] == sources
    assert qdq_counts(result) == (2, 2)
    assert snr_db(output(original, image), output(result, image)) > 30


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = MatMul (x, w)  c = Add (a, b)  d = Relu (a)  y = Add (c, d)", "the matmul has two readers"),
        ("a = MatMul (x, w)  c = Mul (a, b)  y = Relu (c)", "not an Add"),
        ("a = MatMul (x, w)  c = Add (a, wide)  y = Relu (c)", "not one value per channel"),
        ("a = MatMul (x, w)  c = Add (a, x)  y = Relu (c)", "not constant"),
    ],
)
def test_only_a_constant_per_channel_is_a_bias(body: str, reason: str) -> None:
    weights = {"w": noise(6, 6, seed=0), "b": noise(6, seed=1), "wide": noise(7, 6, seed=2)}
    used = {name: array for name, array in weights.items() if f"{name})" in body}
    original = checked_graph(f"(float[batch, 7, 6] x) => (float[batch, 7, 6] y) {{ {body} }}", **used)
    result = quantized(original, noise(2, 7, 6, seed=0), scheme=INT8_SCHEMES["ort"])
    assert "INT32" not in constant_types(result).values(), reason


# Scales


def test_activation_scales_match_hand_calculation() -> None:
    scale, zero = activation_scale(ValueRange((-1.0, -0.5), (2.0, 4.1)), "uint8")
    assert float(scale) == pytest.approx(0.02)
    assert int(zero) == 50
    scale, zero = activation_scale(ValueRange((-1.0, -0.5), (2.0, 4.1)), "int8")
    assert float(scale) == pytest.approx(4.1 / 127)
    assert int(zero) == 0


@pytest.mark.parametrize(
    ("low", "high", "zero"),
    [(0.0, 5.0, 0), (3.0, 5.0, 0), (-5.0, -3.0, 255), (-5.0, 0.0, 255), (-1e-9, 1.0, 0), (0.0, 0.0, 0)],
)
def test_the_range_includes_zero(low: float, high: float, zero: int) -> None:
    """Even if no value is near zero: padding adds zeros."""
    scale, found = activation_scale(ValueRange((low,), (high,)), "uint8", min_scale=2.0**-60)
    assert int(found) == zero
    assert scale > 0
    assert float(scale) * 255 >= 0.9999 * (max(high, 0) - min(low, 0))


@pytest.mark.parametrize("seed", range(20))
def test_the_error_within_the_range_is_at_most_half_a_step(seed: int) -> None:
    random = np.random.default_rng(seed)
    low, high = sorted(random.standard_normal(2) * 10 ** random.uniform(-3, 3))
    values = np.linspace(low, high, 1001)
    for dtype, least, most in (("uint8", 0, 255), ("int8", -127, 127)):
        scale, zero = activation_scale(ValueRange((low,), (high,)), dtype)  # type: ignore[arg-type]
        integers = np.clip(np.rint(values / scale) + zero, least, most)
        assert np.abs((integers - zero) * scale - values).max() <= 0.5001 * scale


def test_channel_scales_match_hand_calculation() -> None:
    weight = np.asarray([[1.27, -2.54, 0], [0.1, 0.2, 0]], np.float32)
    assert np.allclose(channel_scales(weight, 1), [0.01, 0.02, 0])
    assert np.allclose(channel_scales(weight, 0), [0.02, 0.2 / 127])
    assert np.allclose(channel_scales(weight, 1, min_scale=0.015), [0.015, 0.02, 0.015])


def test_safe_channel_scales_match_hand_calculation() -> None:
    """By the two largest weights of one sign, or by the largest weight."""
    weight = np.asarray([[1.27, -0.1, 0.1], [1.0, 0.9, -0.2], [-0.3, -1.0, -1.0], [0, 0, 0]], np.float32)
    found = channel_scales(weight, 0, weight_range="safe")
    assert np.allclose(found, [1.37 / 127.5, 1.9 / 127.5, 2 / 127.5, 0])
    one_of_each_sign = weight[:1, :2]  # needs no larger scale
    assert np.allclose(channel_scales(one_of_each_sign, 0, weight_range="safe"), [0.01])


@pytest.mark.parametrize("fmt", ["trt", "trt-rtx"])
@every_case
def test_scales_for_tensorrt_are_normal_fp16_numbers(case: Case, fmt: str) -> None:
    """1e-6 would lose half of its bits."""
    weight = noise(*case.weight, seed=1)
    np.moveaxis(weight, case.axis, 0)[1] *= 1e-6
    result = quantized(case.graph(weight=weight), 1e-4 * case.image(), scheme=INT8_SCHEMES[fmt])
    scales = [constant(value) for name, value in result.model.graph.initializers.items() if "_scale" in name]
    assert len(scales) == 2
    assert min(float(scale.min()) for scale in scales if scale is not None) == 2.0**-14


def largest_pair(channel: Array) -> int:
    """Return the largest magnitude of the sum of two values of one sign."""
    values = np.sort(channel.astype(int).ravel())
    return max(int(values[-2:].clip(0).sum()), int(-values[:2].clip(None, 0).sum()))


@every_scheme
@every_case
def test_weights_and_biases_are_rounded_to_nearest(case: Case, fmt: str) -> None:
    original, scheme = case.graph(), INT8_SCHEMES[fmt]
    result = quantized(original, case.image(), scheme=scheme)
    for name, (reader, index) in {"w": ("a", 1), "b": (case.biased, case.bias_index)}.items():
        found = quantized_input(result, reader, index)
        if found.dtype != "FLOAT":
            integers = constant(result.model.graph.initializers[found.source])
            expected = constant(original.model.graph.initializers[name])
            assert integers is not None and expected is not None
            steps = found.scale.reshape([-1 if axis == found.axis else 1 for axis in range(expected.ndim)])
            assert (np.abs(integers * steps.astype(float) - expected) <= 0.5001 * steps).all()
            if name == "w" and scheme.weight_range == "full":
                assert np.abs(integers).max() == 127
            elif name == "w":  # the largest pair that does not overflow
                assert 127 <= max(largest_pair(channel) for channel in np.moveaxis(integers, case.axis, 0)) <= 128


# Accuracy


def bound(case: Case, original: OnnxGraph, result: OnnxGraph, image: Array) -> Array:
    """Return the largest possible error of each output.

    It is half a step of the input times the weights, half a step of the weights times the rounded input, half a step of
    the bias, and half a step of the output if it is quantized.
    """
    x, w = quantized_input(result, "a"), quantized_input(result, "a", 1)
    weight = constant(original.model.graph.initializers["w"])
    assert weight is not None
    steps = w.scale.reshape([-1 if axis == case.axis else 1 for axis in range(weight.ndim)]) * np.ones_like(weight)
    zeros = np.zeros(case.channels, np.float32)

    def product(left: Array, right: Array) -> Array:
        return output(case.graph(weight=right.astype(np.float32), bias=zeros), left.astype(np.float32))

    found = product(np.full_like(image, x.scale / 2), np.abs(weight))
    found = found + product(np.abs(image) + x.scale / 2, steps / 2)
    biased = quantized_input(result, case.biased, case.bias_index)
    if biased.dtype == "INT32":
        channels = found.ndim - 1 if case.operator != "Conv" else 1
        found = found + biased.scale.reshape([-1 if axis == channels else 1 for axis in range(found.ndim)]) / 2
    if quantized_input(result, "y").dtype != "FLOAT":
        found = found + quantized_input(result, "y").scale / 2
    return found


@every_scheme
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
@every_case
def test_errors_are_within_the_rounding_bound(case: Case, shift: float, fmt: str) -> None:
    """The Relu at the end does not increase them."""
    original, image = case.graph(), case.image() + np.float32(shift)
    result = quantized(original, image, scheme=INT8_SCHEMES[fmt])
    difference = np.abs(output(result, image) - output(original, image))
    allowed = bound(case, original, result, image)
    assert (difference <= 1.0001 * allowed + 1e-5).all()
    assert difference.max() > 0
    assert difference.mean() < allowed.mean() / 2  # the bound is for the worst case


@every_scheme
def test_zeros_from_padding_stay_zero(fmt: str) -> None:
    """Although all calibration values are between 2 and 3."""
    case = CASES["Conv"]
    original = case.graph(bias=np.zeros(8, np.float32))
    result = quantized(original, 2 + np.abs(np.sin(case.image())), scheme=INT8_SCHEMES[fmt])
    black = np.zeros((1, 4, 6, 6), np.float32)
    assert not output(result, black).any()


@every_scheme
@every_case
def test_a_channel_with_zero_weights_gives_no_nan(case: Case, fmt: str) -> None:
    weight = noise(*case.weight, seed=1)
    np.moveaxis(weight, case.axis, 0)[1] = 0
    original = case.graph(weight=weight, bias=np.zeros(case.channels, np.float32))
    result = quantized(original, case.image(), scheme=INT8_SCHEMES[fmt])
    actual = output(result, case.image())
    assert np.isfinite(actual).all()
    assert snr_db(output(original, case.image()), actual) > 25
    assert np.isfinite(output(quantized(original, 0 * case.image(), scheme=INT8_SCHEMES[fmt]), case.image())).all()


@every_scheme
@pytest.mark.parametrize("size", [0.0, 1e-9])
@every_case
def test_a_channel_with_tiny_weights_keeps_its_bias(case: Case, size: float, fmt: str) -> None:
    """Fused BatchNormalization leaves such channels."""
    weight, bias = noise(*case.weight, seed=1), np.full(case.channels, 0.5, np.float32)
    np.moveaxis(weight, case.axis, 0)[1] *= size
    original = case.graph(weight=weight, bias=bias)
    result = quantized(original, case.image(), scheme=INT8_SCHEMES[fmt])
    channels = 1 if case.operator == "Conv" else -1
    actual = np.moveaxis(output(result, case.image()), channels, 0)[1]
    # A quantized output has one scale for all channels.
    step = float(np.ptp(output(original, case.image()))) / 255
    assert actual == pytest.approx(0.5, abs=0.02 + step)


@every_scheme
@every_case
def test_an_input_of_zeros_keeps_the_bias(case: Case, fmt: str) -> None:
    original = case.graph(bias=np.full(case.channels, 0.5, np.float32))
    result = quantized(original, 0 * case.image(), scheme=INT8_SCHEMES[fmt])
    assert output(result, 0 * case.image()) == pytest.approx(0.5, abs=0.02)


NET = """(float[batch, 3, 16, 16] x) => (float[batch, 10] y) {
    a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, stem, stem_b)
    b = Relu (a)
    c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, depth, depth_b)
    d = Conv (c, wide, wide_b)
    e = Relu (d)
    f = Conv (e, narrow, narrow_b)
    g = Add (b, f)
    h = Relu (g)
    i = GlobalAveragePool (h)
    j = Flatten (i)
    y = Gemm <transB = 1> (j, head, head_b)
}"""
SHAPES = {"stem": (16, 3, 3, 3), "depth": (16, 1, 3, 3), "wide": (32, 16, 1, 1), "narrow": (16, 32, 1, 1),
          "head": (10, 16)}  # fmt: skip


def conv_net(seed: int) -> OnnxGraph:
    weights: dict[str, Array] = {}
    for index, (name, shape) in enumerate(SHAPES.items()):
        weights[name] = noise(*shape, scale=float(np.prod(shape[1:])) ** -0.5, seed=10 * seed + index)
        weights[f"{name}_b"] = noise(shape[0], scale=0.1, seed=10 * seed + index + 5)
    return checked_graph(NET, **weights)


@every_scheme
@pytest.mark.parametrize("seed", range(4))
def test_a_small_net_keeps_its_outputs(seed: int, fmt: str) -> None:
    original = conv_net(seed)
    images = [noise(4, 3, 16, 16, seed=100 * seed + index) for index in range(3)]
    result = quantized(original, *images, scheme=INT8_SCHEMES[fmt])
    assert result.operators["DequantizeLinear"] >= 2 * 5
    expected, actual = (
        np.concatenate([load(each)({"x": image})["y"] for image in images]) for each in (original, result)
    )
    assert snr_db(expected, actual) > 30


def test_onnx_runtime_runs_every_layer_of_it_in_int8() -> None:
    result = quantized(conv_net(0), noise(4, 3, 16, 16, seed=0), scheme=INT8_SCHEMES["ort"])
    engine = OnnxRuntimeEngine(onnxruntime, result.to_bytes(), BuildOptions(threads=1, precision="int8"))
    assert engine.executed_precision().fraction("int8") == 1


def test_onnx_runtime_computes_the_same_with_optimizations() -> None:
    """On every processor, with VNNI or without."""
    original, image = conv_net(0), noise(4, 3, 16, 16, seed=0)
    result = quantized(original, image, scheme=INT8_SCHEMES["ort"])
    optimized: Mapping[str, Array] = OnnxRuntimeEngine(onnxruntime, result.to_bytes(), BuildOptions(threads=1)).run(
        {"x": image}
    )
    assert snr_db(output(result, image), optimized["y"]) > 35


# Processors without VNNI


def convs_and_products(weight_range: Int8Range, fmt: str = "ort") -> tuple[OnnxGraph, Array]:
    """Return a QDQ graph with convolutions and a Gemm, and an image."""
    original, images = conv_net(1), [noise(4, 3, 16, 16, seed=index) for index in range(3)]
    return quantized(original, *images, scheme=replace(INT8_SCHEMES[fmt], weight_range=weight_range)), np.abs(images[0])


def saturated(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph as processors without VNNI compute it."""
    return check(emulate_saturation(graph))


@pytest.mark.parametrize("fmt", ["onnx", "ort", "openvino"])
@every_case
def test_safe_weights_do_not_saturate(case: Case, fmt: str) -> None:
    result = quantized(case.graph(), case.image(), scheme=INT8_SCHEMES[fmt])
    assert not needs_vnni(result)
    for image in (case.image(), np.full(case.input, 1e9, np.float32), np.full(case.input, -1e9, np.float32)):
        assert output(saturated(result), image) == pytest.approx(output(result, image), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("fmt", ["onnx", "ort", "openvino"])
@every_case
def test_weights_of_the_full_range_saturate(case: Case, fmt: str) -> None:
    """Large inputs and large weights of one sign."""
    original = case.graph(weight=1 + 0.1 * np.abs(noise(*case.weight, seed=1)))
    image = 1 + 0.1 * np.abs(case.image())
    result = quantized(original, image, scheme=replace(INT8_SCHEMES[fmt], weight_range="full"))
    assert needs_vnni(result)
    assert snr_db(output(result, image), output(saturated(result), image)) < 15


def test_a_net_is_wrong_without_vnni_with_full_weights_and_right_with_safe_ones() -> None:
    """On every machine: the graph with all 8 bits fails the bound that the safe one passes."""
    image = noise(4, 3, 16, 16, seed=0)
    expected = output(conv_net(1), image)
    full, safe = (convs_and_products(weights)[0] for weights in ("full", "safe"))
    assert snr_db(expected, output(full, image)) > 35
    assert snr_db(expected, output(saturated(full), image)) < 30
    assert snr_db(expected, output(safe, image)) > 35
    assert snr_db(expected, output(saturated(safe), image)) > 35


@pytest.mark.parametrize("seed", range(20))
def test_no_pair_of_safe_weights_overflows(seed: int) -> None:
    """For heavy-tailed weights of any shape and scale, along both axes."""
    random = np.random.default_rng(seed)
    weight = random.standard_t(2, size=(random.integers(1, 40), random.integers(1, 40))).astype(np.float32)
    weight *= 10 ** random.uniform(-6, 6)
    for axis in (0, 1):
        scales = channel_scales(weight, axis, weight_range="safe", min_scale=2.0**-60)
        original = np.rint(weight / (scales[:, None] if axis == 0 else scales))
        assert max(largest_pair(channel) for channel in np.moveaxis(original, axis, 0)) <= 128
        assert np.abs(original).max() <= 127


def test_only_pairs_of_one_sign_that_overflow_need_vnni() -> None:
    def graph_with(*weights: int) -> OnnxGraph:
        text = """(uint8[batch, 3] x) => (float[batch, 1] y) {
            a = DequantizeLinear (x, s, z)
            b = DequantizeLinear <axis = 1> (w, t, i)
            y = MatMul (a, b)
        }"""
        one = {"s": np.float32(1), "t": np.ones(1, np.float32), "z": np.uint8(0), "i": np.zeros(1, np.int8)}
        return parse(f"{HEADER} g {text}", w=np.asarray(weights, np.int8)[:, None], **map_arrays(one))

    assert not needs_vnni(graph_with(127, -127, 1))
    assert not needs_vnni(graph_with(-64, 3, -64))
    assert needs_vnni(graph_with(-65, 3, -64))
    assert needs_vnni(graph_with(2, 127, 3))


def map_arrays(values: Mapping[str, object]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.skipif(not saturates_int8(), reason="this processor does not saturate")
@pytest.mark.parametrize("weights", ["full", "safe"])
def test_the_emulation_computes_what_onnx_runtime_does_here(weights: Int8Range) -> None:
    result, image = convs_and_products(weights)
    optimized = OnnxRuntimeEngine(onnxruntime, result.to_bytes(), BuildOptions(threads=1)).run({"x": image})
    assert snr_db(output(saturated(result), image), optimized["y"]) > 35
