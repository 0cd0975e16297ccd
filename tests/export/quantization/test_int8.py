"""int8: where QuantizeLinear and DequantizeLinear stand, in which types, and how far answers may move by them."""

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

from edgevit.cpu import saturates_int8
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.macs import graph_macs
from edgevit.export.quantization.calibration import Reach, measure_reach
from edgevit.export.quantization.emulation import emulate_fp16, emulate_saturation
from edgevit.export.quantization.fp16 import to_fp16
from edgevit.export.quantization.int8 import (
    GROUPED,
    MULTIPLIED,
    activation_scale,
    channel_scales,
    layers_of,
    needs_vnni,
    quantize,
)
from edgevit.formats import Int8Range, Int8Scheme
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array, Run
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import parse

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
FRAMES = frozenset({"QuantizeLinear", "DequantizeLinear"})
every_scheme = pytest.mark.parametrize("fmt", INT8_SCHEMES)


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def graph(text: str, **weights: Array) -> OnnxGraph:
    """The checked graph, every node named after what it makes."""
    parsed = parse(f"{HEAD} g {text}", **weights)
    for node in parsed.model.graph:
        node.name = f"net/{node.outputs[0].name}"
    return check(parsed)


def load(graph: OnnxGraph) -> Run:
    return OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), BuildOptions(threads=1), optimized=False).run


def answer(graph: OnnxGraph, image: Array) -> Array:
    return load(graph)({"x": image})["y"]


def quantised(
    graph: OnnxGraph,
    *images: Array,
    scheme: Int8Scheme = INT8_SCHEMES["openvino"],
    names: tuple[str, ...] | None = None,
) -> OnnxGraph:
    """The graph with the layers of these names in int8, or all that would gain; it has shown that it is valid."""
    reach = measure_reach(graph, [{"x": image} for image in images], load=load)
    chosen = [layer.name for layer in layers_of(graph) if not layer.stays_float] if names is None else names
    made = quantize(graph, chosen, reach, scheme=scheme)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    values = [value.name for node in made.model.graph for value in node.outputs]
    assert len(set(values)) == len(values)
    assert all(
        value.shape is not None and value.dtype is not None for node in made.model.graph for value in node.outputs
    )
    return made


@dataclass(frozen=True)
class Read:
    """How a node reads one of its inputs."""

    dtype: str  # of the integers; FLOAT where there are none
    scale: Array
    zero: Array
    axis: int
    source: str  # the tensor that is rounded, or the weight


def read(graph: OnnxGraph, node: str, index: int = 0) -> Read:
    reader = next(each for each in graph.model.graph if each.outputs[0].name == node)
    value = reader.inputs[index]
    assert value is not None
    up = value.producer()
    if up is None or up.op_type != "DequantizeLinear":
        return Read(str(value.dtype), np.ones(0), np.ones(0), -1, str(value.name))
    integers, scale, zero = up.inputs[0], constant(up.inputs[1]), constant(up.inputs[2])
    assert integers is not None and scale is not None and zero is not None
    assert zero.dtype == integers.dtype.numpy()  # type: ignore[union-attr]
    down = integers.producer()
    source = str((down.inputs[0] if down is not None else integers).name)  # type: ignore[union-attr]
    if down is not None:  # rounded and back by the very same numbers
        assert (down.op_type, down.inputs[1], down.inputs[2]) == ("QuantizeLinear", up.inputs[1], up.inputs[2])
    return Read(str(integers.dtype), scale, zero, up.attributes.get_int("axis", 1), source)


def frames(graph: OnnxGraph) -> tuple[int, int]:
    """QuantizeLinear and DequantizeLinear in the graph."""
    return graph.operators["QuantizeLinear"], graph.operators["DequantizeLinear"]


def stored(graph: OnnxGraph) -> dict[str, str]:
    """Constants that are no scales and no zero points, with their types."""
    return {
        name: str(value.dtype)
        for name, value in graph.model.graph.initializers.items()
        if "_scale" not in name and "_zero_point" not in name
    }


def snr_db(want: Array, got: Array) -> float:
    return 10 * float(np.log10((want.astype(float) ** 2).mean() / ((got - want).astype(float) ** 2).mean()))


# What a layer is


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
    """A graph of one layer `a` with the weights `w` and the bias `b`."""

    text: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    axis: int  # of the weight's output channels
    multiply_adds: int
    operator: str
    biased: str = "a"  # what adds the bias, and where it reads it
    bias_index: int = 2

    @property
    def channels(self) -> int:
        return self.weight[self.axis]

    def graph(self, *, weight: Array | None = None, bias: Array | None = None) -> OnnxGraph:
        w = noise(*self.weight, scale=0.3, seed=1) if weight is None else weight
        return graph(self.text, w=w, b=noise(self.channels, seed=2) if bias is None else bias)

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
def test_a_layer_and_its_multiply_adds(case: Case) -> None:
    (layer,) = layers_of(case.graph())
    assert (layer.name, layer.operator, layer.activation, layer.output) == ("net/a", case.operator, "x", "a")
    assert (layer.multiply_adds, layer.stays_float) == (case.multiply_adds, "")
    assert graph_macs(case.graph()) == case.multiply_adds


@pytest.mark.parametrize(
    ("groups", "alone", "beside"), [(4, MULTIPLIED, MULTIPLIED), (2, "", GROUPED), (1, "", "")], ids=["4", "2", "1"]
)
def test_a_grouped_convolution_stays_float_beside_larger_layers(groups: int, alone: str, beside: str) -> None:
    """With a multiplier always; with fewer groups than channels unless most of the work is in them."""
    weight = noise(8, 4 // groups, 3, 3)
    (layer,) = layers_of(graph(convolution(8, groups), w=weight, b=noise(8)))
    assert layer.stays_float == alone
    assert layer.multiply_adds == 8 * 36 * 4 // groups * 9
    text = f"""(float[batch, 4, 6, 6] x) => (float[batch, 64, 6, 6] y) {{
        a = Conv <group = {groups}, pads = [1, 1, 1, 1]> (x, w)
        y = Conv <pads = [1, 1, 1, 1]> (a, large)
    }}"""
    first, second = layers_of(graph(text, w=weight, large=noise(64, 8, 3, 3)))
    assert (first.stays_float, second.stays_float) == (beside, "")


def test_a_layer_that_is_too_small_stays_float() -> None:
    """1,000 multiply-adds are the least of a million that is still worth it."""
    text = """(float[batch, 1000] x) => (float[batch, 1] y) {
        a = MatMul (x, w)
        b = MatMul (a, first)
        y = MatMul (b, second)
    }"""
    whole = graph(text, w=noise(1000, 1000), first=noise(1000, 2), second=noise(2, 1))
    assert [bool(layer.stays_float) for layer in layers_of(whole)] == [False, False, True]
    assert layers_of(whole)[2].stays_float == "too small to gain by it: 0.00% of the multiply-adds"


ATTENTION = """(float[batch, 5, 6] x) => (float[batch, 5, 6] y) {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, t)
    p = Softmax (s)
    y = MatMul (p, q)
}"""


def test_a_product_of_two_activations_is_no_layer_and_counts() -> None:
    whole = graph(ATTENTION, wq=noise(6, 6), wk=noise(6, 6, seed=1))
    assert [layer.name for layer in layers_of(whole)] == ["net/q", "net/k"]
    assert graph_macs(whole) == 2 * 5 * 36 + 2 * 5 * 5 * 6
    made = quantised(whole, noise(2, 5, 6))
    assert {read(made, name, index).dtype for name in ("s", "y") for index in (0, 1)} == {"FLOAT"}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_no_layer_and_counts(groups: int) -> None:
    """It stays in float; left out of the sum, int8 would be said of more of the graph than it is true of."""
    whole = graph(
        f"""(float[batch, 4, 6, 6] x) => (float[batch, {8 * groups}, 12, 12] y) {{
              y = ConvTranspose <kernel_shape = [4, 4], strides = [2, 2], pads = [1, 1, 1, 1], group = {groups}> (x, w)
            }}""",
        w=noise(4, 8, 4, 4),
    )
    assert layers_of(whole) == ()
    assert graph_macs(whole) == 4 * 36 * 8 * 16


def test_a_product_with_a_vector_is_counted() -> None:
    whole = graph("(float[batch, 6] x) => (float[batch] y) { y = MatMul (x, v) }", v=noise(6))
    assert graph_macs(whole) == 6
    assert layers_of(whole) == ()


@pytest.mark.parametrize(
    "text",
    [
        "(float[6, 3] x) => (float[3, 5] y) { y = Gemm <transA = 1> (x, w) }",
        "(float[5, 3] x) => (float[6, 3] y) { y = MatMul (w, x) }",  # the weight on the left
        "(float[3, 6] x) => (float[3, 5] y) { d = Relu (x)  a = MatMul (w, v)  c = MatMul (d, a)  y = Relu (c) }",
    ],
)
def test_what_has_no_constant_weight_on_the_right_is_no_layer(text: str) -> None:
    assert layers_of(graph(text, w=noise(6, 5), v=noise(5, 5))) == ()


class Windows(nn.Module):
    """Four windows an image, as window attention cuts them."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.after = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = self.inside(x.reshape(4 * x.shape[0], 2, 6))  # (4 B, 2, 5)
        found: torch.Tensor = self.after(windows.reshape(x.shape[0], 8, 5))
        return found


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_batch_that_is_folded_into_windows_is_counted(dynamic: bool) -> None:
    example = (torch.zeros(2 if dynamic else 1, 8, 6),)
    captured = capture(Windows(), example, dynamic_batch=dynamic).graph
    whole = check(passes.specialize(passes.optimize(captured), "onnx"))
    assert [layer.multiply_adds for layer in layers_of(whole)] == [8 * 6 * 5, 8 * 5 * 3]
    assert graph_macs(whole) == 8 * 6 * 5 + 8 * 5 * 3


# The form


@every_scheme
@every_case
def test_a_layer_reads_integers_in_each_scheme(case: Case, fmt: str) -> None:
    scheme = INT8_SCHEMES[fmt]
    made = quantised(case.graph(), case.image(), scheme=scheme)
    x, w = read(made, "a"), read(made, "a", 1)
    assert (x.dtype, x.source) == (scheme.activations.upper(), "x")
    assert x.scale.shape == x.zero.shape == ()
    assert (w.dtype, w.axis) == ("INT8", case.axis)
    assert w.scale.shape == (case.channels,)
    assert not w.zero.any()
    biased = read(made, case.biased, case.bias_index)
    assert biased.dtype == ("INT32" if scheme.int32_biases else "FLOAT")
    if scheme.int32_biases:
        assert np.array_equal(biased.scale, x.scale * w.scale)
        assert not biased.zero.any()
    framed = case.operator in scheme.quantize_outputs_of
    assert read(made, "y").dtype == ("UINT8" if framed else "FLOAT")
    assert frames(made) == (1 + framed, 2 + framed + scheme.int32_biases)
    assert stored(made) == {
        "w_int8": "INT8",
        **({"b_int32": "INT32"} if scheme.int32_biases else {"b": "FLOAT"}),
    }


@every_scheme
def test_symmetric_for_tensorrt_and_zero_points_for_the_others(fmt: str) -> None:
    case = CASES["Conv"]
    made = quantised(case.graph(), case.image() + 1, scheme=INT8_SCHEMES[fmt])
    x = read(made, "a")
    if fmt.startswith("trt"):
        assert (x.dtype, int(x.zero)) == ("INT8", 0)
        assert INT8_SCHEMES[fmt].float_dtype == "fp16"
    else:
        assert x.dtype == "UINT8"
        assert 0 < int(x.zero) < 128
        assert INT8_SCHEMES[fmt].float_dtype == "fp32"


@pytest.mark.parametrize("fmt", [fmt for fmt, scheme in INT8_SCHEMES.items() if scheme.float_dtype == "fp16"])
@every_case
def test_what_is_not_int8_becomes_fp16(case: Case, fmt: str) -> None:
    """Scales and activations alike, and the answers hold."""
    whole, image = case.graph(), case.image()
    made, _ = to_fp16(quantised(whole, image, scheme=INT8_SCHEMES[fmt]), [{"x": image}], load=load)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    for index in (0, 1):
        found = read(made, "a", index)
        assert (found.dtype, str(found.scale.dtype)) == ("INT8", "float16")
        assert (found.scale >= np.float32(2.0**-14)).all()
    assert snr_db(answer(whole, image), answer(emulate_fp16(made), image)) > 30


def test_layers_that_read_one_tensor_share_one_pair_and_the_residual_goes_round() -> None:
    text = """(float[batch, 5, 6] x) => (float[batch, 5, 6] y) {
        h = Relu (x)
        a = MatMul (h, w)
        b = MatMul (h, v)
        c = Add (a, b)
        y = Add (h, c)
    }"""
    made = quantised(graph(text, w=noise(6, 6), v=noise(6, 6, seed=1)), noise(2, 5, 6))
    assert frames(made) == (1, 3)
    assert read(made, "a").source == read(made, "b").source == "h"
    assert read(made, "y", 0).dtype == "FLOAT"
    assert read(made, "y", 0).source == "h"


def test_layers_that_are_not_asked_for_stay_as_they_were() -> None:
    text = """(float[batch, 5, 6] x) => (float[batch, 5, 6] y) {
        a = MatMul (x, w)
        b = MatMul (x, v)
        y = Add (a, b)
    }"""
    made = quantised(graph(text, w=noise(6, 6), v=noise(6, 6, seed=1)), noise(2, 5, 6), names=("net/b",))
    assert [read(made, "a", index).source for index in (0, 1)] == ["x", "w"]
    assert [read(made, "b", index).dtype for index in (0, 1)] == ["UINT8", "INT8"]
    assert stored(made) == {"w": "FLOAT", "v_int8": "INT8"}


def test_the_graph_that_was_given_stays_as_it_was() -> None:
    whole = CASES["Conv"].graph()
    content = whole.to_bytes()
    made = quantised(whole, CASES["Conv"].image())
    assert whole.to_bytes() == content
    assert made.history[-1].name == "quantize"
    assert [spec.name for spec in (*made.inputs, *made.outputs)] == ["x", "y"]


@every_scheme
def test_a_layer_that_makes_an_output_of_the_graph(fmt: str) -> None:
    text = "(float[batch, 4, 6, 6] x) => (float[batch, 8, 6, 6] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }"
    whole, image = graph(text, w=noise(8, 4, 3, 3), b=noise(8)), noise(2, 4, 6, 6)
    made = quantised(whole, image, scheme=INT8_SCHEMES[fmt])
    assert [spec.name for spec in made.outputs] == ["y"]
    assert snr_db(answer(whole, image), answer(made, image)) > 30


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[batch, 8, 6, 6] y", "y = Conv (x, w)"),
        ("float[batch, 8, 6, 6] a, float[batch, 8, 6, 6] y", "a = Conv (x, w)  y = Relu (a)"),
    ],
)
def test_a_convolution_that_makes_an_output_runs_in_integers(outputs: str, body: str) -> None:
    """Where ONNX Runtime needs the frame."""
    whole = graph(f"(float[batch, 4, 8, 8] x) => ({outputs}) {{ {body} }}", w=noise(8, 4, 3, 3))
    typed = quantised(whole, noise(2, 4, 8, 8), scheme=INT8_SCHEMES["ort"])
    engine = OnnxRuntimeEngine(onnxruntime, typed.to_bytes(), BuildOptions(threads=1, precision="int8"))
    assert engine.executed_precision().fraction("int8") == 1


@every_scheme
def test_a_weight_that_two_layers_share_is_stored_once(fmt: str) -> None:
    text = """(float[batch, 6] x) => (float[batch, 6] y) {
        a = Gemm (x, w, b)
        c = Relu (a)
        y = Gemm (c, w, b)
    }"""
    whole, image = graph(text, w=noise(6, 6, scale=0.4), b=noise(6)), noise(2, 6)
    made = quantised(whole, image, scheme=INT8_SCHEMES[fmt])
    assert [name for name, dtype in stored(made).items() if dtype == "INT8"] == ["w_int8"]
    assert read(made, "a", 1).source == read(made, "y", 1).source == "w_int8"
    if INT8_SCHEMES[fmt].int32_biases:  # in the steps of either layer
        assert [name for name, dtype in stored(made).items() if dtype == "INT32"] == ["b_int32", "b_int32_1"]
    assert snr_db(answer(whole, image), answer(made, image)) > 25


def test_a_weight_that_is_read_along_both_axes_has_scales_for_both() -> None:
    text = """(float[batch, 6] x) => (float[batch, 6] y) {
        a = Gemm (x, w)
        y = Gemm <transB = 1> (a, w)
    }"""
    whole, image = graph(text, w=noise(6, 6)), noise(2, 6)
    made = quantised(whole, image)
    assert [read(made, name, 1).axis for name in ("a", "y")] == [1, 0]
    assert snr_db(answer(whole, image), answer(made, image)) > 25


def test_a_weight_that_a_float_layer_shares_stays_beside() -> None:
    text = """(float[batch, 6] x) => (float[batch, 6] y) {
        a = Gemm (x, w)
        y = Gemm (a, w)
    }"""
    made = quantised(graph(text, w=noise(6, 6)), noise(2, 6), names=("net/y",))
    assert stored(made) == {"w": "FLOAT", "w_int8": "INT8"}


def test_a_framed_output_is_rounded_once_for_all_that_read_it() -> None:
    text = """(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
        a = Conv (x, w)
        b = Conv (a, v)
        y = Add (a, b)
    }"""
    whole, image = graph(text, w=noise(4, 4, 1, 1), v=noise(4, 4, 1, 1, seed=1)), noise(2, 4, 6, 6)
    made = quantised(whole, image, scheme=INT8_SCHEMES["ort"])
    assert frames(made) == (3, 5)  # x, a and b; two weights
    assert read(made, "b").source == read(made, "y").source == "a"
    assert read(made, "y", 1).source == "b"
    unframed = quantised(whole, image, scheme=INT8_SCHEMES["openvino"])
    assert frames(unframed) == (2, 4)
    assert [read(unframed, "y", index).dtype for index in (0, 1)] == ["FLOAT", "FLOAT"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = MatMul (x, w)  c = Add (a, b)  d = Relu (a)  y = Add (c, d)", "the product has two readers"),
        ("a = MatMul (x, w)  c = Mul (a, b)  y = Relu (c)", "no sum"),
        ("a = MatMul (x, w)  c = Add (a, wide)  y = Relu (c)", "not one number a channel"),
        ("a = MatMul (x, w)  c = Add (a, x)  y = Relu (c)", "no constant"),
    ],
)
def test_what_is_no_bias_stays_float(body: str, why: str) -> None:
    weights = {"w": noise(6, 6), "b": noise(6, seed=1), "wide": noise(7, 6, seed=2)}
    used = {name: array for name, array in weights.items() if f"{name})" in body}
    whole = graph(f"(float[batch, 7, 6] x) => (float[batch, 7, 6] y) {{ {body} }}", **used)
    made = quantised(whole, noise(2, 7, 6), scheme=INT8_SCHEMES["ort"])
    assert "INT32" not in stored(made).values(), why


# Scales


def test_the_scale_of_a_tensor_by_hand() -> None:
    scale, zero = activation_scale(Reach((-1.0, -0.5), (2.0, 4.1)), "uint8")
    assert float(scale) == pytest.approx(0.02)
    assert int(zero) == 50
    scale, zero = activation_scale(Reach((-1.0, -0.5), (2.0, 4.1)), "int8")
    assert float(scale) == pytest.approx(4.1 / 127)
    assert int(zero) == 0


@pytest.mark.parametrize(
    ("low", "high", "zero"),
    [(0.0, 5.0, 0), (3.0, 5.0, 0), (-5.0, -3.0, 255), (-5.0, 0.0, 255), (-1e-9, 1.0, 0), (0.0, 0.0, 0)],
)
def test_zero_is_always_among_the_values(low: float, high: float, zero: int) -> None:
    """Also of what never comes near it: padding does."""
    scale, found = activation_scale(Reach((low,), (high,)), "uint8", smallest=2.0**-60)
    assert int(found) == zero
    assert scale > 0
    assert float(scale) * 255 >= 0.9999 * (max(high, 0) - min(low, 0))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_within_the_reach_moves_by_more_than_half_a_step(seed: int) -> None:
    random = np.random.default_rng(seed)
    low, high = sorted(random.standard_normal(2) * 10 ** random.uniform(-3, 3))
    values = np.linspace(low, high, 1001)
    for bits, least, most in (("uint8", 0, 255), ("int8", -127, 127)):
        scale, zero = activation_scale(Reach((low,), (high,)), bits)  # type: ignore[arg-type]
        whole = np.clip(np.rint(values / scale) + zero, least, most)
        assert np.abs((whole - zero) * scale - values).max() <= 0.5001 * scale


def test_the_scales_of_channels() -> None:
    weight = np.asarray([[1.27, -2.54, 0], [0.1, 0.2, 0]], np.float32)
    assert np.allclose(channel_scales(weight, 1), [0.01, 0.02, 0])
    assert np.allclose(channel_scales(weight, 0), [0.02, 0.2 / 127])
    assert np.allclose(channel_scales(weight, 1, smallest=0.015), [0.015, 0.02, 0.015])


def test_the_scales_of_safe_channels() -> None:
    """By the two largest of one sign, if these are more than a single one may be."""
    weight = np.asarray([[1.27, -0.1, 0.1], [1.0, 0.9, -0.2], [-0.3, -1.0, -1.0], [0, 0, 0]], np.float32)
    found = channel_scales(weight, 0, weight_range="safe")
    assert np.allclose(found, [1.37 / 127.5, 1.9 / 127.5, 2 / 127.5, 0])
    assert np.allclose(channel_scales(weight[:1, :2], 0, weight_range="safe"), [0.01])  # one of each sign: 8 bits


@pytest.mark.parametrize("fmt", ["trt", "trt-rtx"])
@every_case
def test_fp16_holds_every_scale_of_tensorrt(case: Case, fmt: str) -> None:
    """As a normal number: half the bits of 1e-6 would be lost."""
    weight = noise(*case.weight, seed=1)
    np.moveaxis(weight, case.axis, 0)[1] *= 1e-6
    made = quantised(case.graph(weight=weight), 1e-4 * case.image(), scheme=INT8_SCHEMES[fmt])
    scales = [constant(value) for name, value in made.model.graph.initializers.items() if "_scale" in name]
    assert len(scales) == 2
    assert min(float(scale.min()) for scale in scales if scale is not None) == 2.0**-14


def largest_pair(channel: Array) -> int:
    """The largest magnitude of the sum of two values of one sign."""
    values = np.sort(channel.astype(int).ravel())
    return max(int(values[-2:].clip(0).sum()), int(-values[:2].clip(None, 0).sum()))


@every_scheme
@every_case
def test_the_nearest_integers_are_stored(case: Case, fmt: str) -> None:
    whole, scheme = case.graph(), INT8_SCHEMES[fmt]
    made = quantised(whole, case.image(), scheme=scheme)
    for name, (reader, index) in {"w": ("a", 1), "b": (case.biased, case.bias_index)}.items():
        found = read(made, reader, index)
        if found.dtype != "FLOAT":
            integers = constant(made.model.graph.initializers[found.source])
            wanted = constant(whole.model.graph.initializers[name])
            assert integers is not None and wanted is not None
            steps = found.scale.reshape([-1 if axis == found.axis else 1 for axis in range(wanted.ndim)])
            assert (np.abs(integers * steps.astype(float) - wanted) <= 0.5001 * steps).all()
            if name == "w" and scheme.weight_range == "full":
                assert np.abs(integers).max() == 127
            elif name == "w":  # as large as no pair of products overflows
                assert 127 <= max(largest_pair(channel) for channel in np.moveaxis(integers, case.axis, 0)) <= 128


# Numbers


def bound(case: Case, whole: OnnxGraph, made: OnnxGraph, image: Array) -> Array:
    """What an answer may move by: half a step of the input times the weights, half a step of the weights times the
    input as rounded, half a step of the bias, and half a step of the answer where it is framed."""
    x, w = read(made, "a"), read(made, "a", 1)
    weight = constant(whole.model.graph.initializers["w"])
    assert weight is not None
    steps = w.scale.reshape([-1 if axis == case.axis else 1 for axis in range(weight.ndim)]) * np.ones_like(weight)
    zeros = np.zeros(case.channels, np.float32)

    def product(left: Array, right: Array) -> Array:
        return answer(case.graph(weight=right.astype(np.float32), bias=zeros), left.astype(np.float32))

    found = product(np.full_like(image, x.scale / 2), np.abs(weight))
    found = found + product(np.abs(image) + x.scale / 2, steps / 2)
    biased = read(made, case.biased, case.bias_index)
    if biased.dtype == "INT32":
        channels = found.ndim - 1 if case.operator != "Conv" else 1
        found = found + biased.scale.reshape([-1 if axis == channels else 1 for axis in range(found.ndim)]) / 2
    if read(made, "y").dtype != "FLOAT":
        found = found + read(made, "y").scale / 2
    return found


@every_scheme
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
@every_case
def test_answers_move_by_half_a_step_at_most(case: Case, shift: float, fmt: str) -> None:
    """Relu at the end lets no difference grow."""
    whole, image = case.graph(), case.image() + np.float32(shift)
    made = quantised(whole, image, scheme=INT8_SCHEMES[fmt])
    difference = np.abs(answer(made, image) - answer(whole, image))
    allowed = bound(case, whole, made, image)
    assert (difference <= 1.0001 * allowed + 1e-5).all()
    assert difference.max() > 0
    assert difference.mean() < allowed.mean() / 2  # the bound is of the worst case


@every_scheme
def test_padding_adds_true_zeros(fmt: str) -> None:
    """Zeros come back as zeros, though every value of the input lies between 2 and 3."""
    case = CASES["Conv"]
    whole = case.graph(bias=np.zeros(8, np.float32))
    made = quantised(whole, 2 + np.abs(np.sin(case.image())), scheme=INT8_SCHEMES[fmt])
    black = np.zeros((1, 4, 6, 6), np.float32)
    assert not answer(made, black).any()


@every_scheme
@every_case
def test_a_dead_channel_gives_no_nan(case: Case, fmt: str) -> None:
    weight = noise(*case.weight, seed=1)
    np.moveaxis(weight, case.axis, 0)[1] = 0
    whole = case.graph(weight=weight, bias=np.zeros(case.channels, np.float32))
    made = quantised(whole, case.image(), scheme=INT8_SCHEMES[fmt])
    got = answer(made, case.image())
    assert np.isfinite(got).all()
    assert snr_db(answer(whole, case.image()), got) > 25
    assert np.isfinite(answer(quantised(whole, 0 * case.image(), scheme=INT8_SCHEMES[fmt]), case.image())).all()


@every_scheme
@pytest.mark.parametrize("size", [0.0, 1e-9])
@every_case
def test_a_dead_channel_keeps_its_bias(case: Case, size: float, fmt: str) -> None:
    """As BatchNormalization leaves them: what it scales to nothing, it still shifts."""
    weight, bias = noise(*case.weight, seed=1), np.full(case.channels, 0.5, np.float32)
    np.moveaxis(weight, case.axis, 0)[1] *= size
    whole = case.graph(weight=weight, bias=bias)
    made = quantised(whole, case.image(), scheme=INT8_SCHEMES[fmt])
    channels = 1 if case.operator == "Conv" else -1
    got = np.moveaxis(answer(made, case.image()), channels, 0)[1]
    step = float(np.ptp(answer(whole, case.image()))) / 255  # of a framed output, which all channels share
    assert got == pytest.approx(0.5, abs=0.02 + step)


@every_scheme
@every_case
def test_an_input_that_was_always_zero_keeps_the_bias(case: Case, fmt: str) -> None:
    whole = case.graph(bias=np.full(case.channels, 0.5, np.float32))
    made = quantised(whole, 0 * case.image(), scheme=INT8_SCHEMES[fmt])
    assert answer(made, 0 * case.image()) == pytest.approx(0.5, abs=0.02)


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
    return graph(NET, **weights)


@every_scheme
@pytest.mark.parametrize("seed", range(4))
def test_a_small_net_keeps_its_answers(seed: int, fmt: str) -> None:
    whole = conv_net(seed)
    images = [noise(4, 3, 16, 16, seed=100 * seed + index) for index in range(3)]
    made = quantised(whole, *images, scheme=INT8_SCHEMES[fmt])
    assert made.operators["DequantizeLinear"] >= 2 * 5
    want, got = (np.concatenate([load(each)({"x": image})["y"] for image in images]) for each in (whole, made))
    assert snr_db(want, got) > 30


def test_onnx_runtime_makes_integers_of_every_layer_of_it() -> None:
    made = quantised(conv_net(0), noise(4, 3, 16, 16), scheme=INT8_SCHEMES["ort"])
    engine = OnnxRuntimeEngine(onnxruntime, made.to_bytes(), BuildOptions(threads=1, precision="int8"))
    assert engine.executed_precision().fraction("int8") == 1


def test_optimised_it_still_answers_the_same() -> None:
    """What ONNX Runtime joins, it computes as the graph says, up to a step."""
    whole, image = conv_net(0), noise(4, 3, 16, 16)
    made = quantised(whole, image, scheme=INT8_SCHEMES["ort"])
    fused: Mapping[str, Array] = OnnxRuntimeEngine(onnxruntime, made.to_bytes(), BuildOptions(threads=1)).run(
        {"x": image}
    )
    assert snr_db(answer(made, image), fused["y"]) > 35


# Processors without VNNI


def convs_and_products(weight_range: Int8Range, fmt: str = "ort") -> tuple[OnnxGraph, Array]:
    """A QDQ graph, and an image that overflows it most: all of its values large."""
    whole, images = conv_net(1), [noise(4, 3, 16, 16, seed=index) for index in range(3)]
    return quantised(whole, *images, scheme=replace(INT8_SCHEMES[fmt], weight_range=weight_range)), np.abs(images[0])


def saturated(graph: OnnxGraph) -> OnnxGraph:
    """The graph as processors without VNNI compute it."""
    return check(emulate_saturation(graph))


@pytest.mark.parametrize("fmt", ["onnx", "ort", "openvino"])
@every_case
def test_safe_weights_do_not_saturate(case: Case, fmt: str) -> None:
    made = quantised(case.graph(), case.image(), scheme=INT8_SCHEMES[fmt])
    assert not needs_vnni(made)
    for image in (case.image(), np.full(case.input, 1e9, np.float32), np.full(case.input, -1e9, np.float32)):
        assert answer(saturated(made), image) == pytest.approx(answer(made, image), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("fmt", ["onnx", "ort", "openvino"])
@every_case
def test_weights_of_the_full_range_saturate(case: Case, fmt: str) -> None:
    """Large values times large weights of one sign overflow the most."""
    whole = case.graph(weight=1 + 0.1 * np.abs(noise(*case.weight, seed=1)))
    image = 1 + 0.1 * np.abs(case.image())
    made = quantised(whole, image, scheme=replace(INT8_SCHEMES[fmt], weight_range="full"))
    assert needs_vnni(made)
    assert snr_db(answer(made, image), answer(saturated(made), image)) < 15


def test_a_net_with_full_weights_is_wrong_without_vnni_and_right_with_safe_ones() -> None:
    """On every machine: today's graph passes what the one with 8 bits fails."""
    image = noise(4, 3, 16, 16)
    want = answer(conv_net(1), image)
    full, safe = (convs_and_products(weights)[0] for weights in ("full", "safe"))
    assert snr_db(want, answer(full, image)) > 35
    assert snr_db(want, answer(saturated(full), image)) < 30
    assert snr_db(want, answer(safe, image)) > 35
    assert snr_db(want, answer(saturated(safe), image)) > 35


@pytest.mark.parametrize("seed", range(20))
def test_no_pair_of_safe_weights_overflows(seed: int) -> None:
    """Of any distribution and shape, rounded as they are stored, in either order of axes."""
    random = np.random.default_rng(seed)
    weight = random.standard_t(2, size=(random.integers(1, 40), random.integers(1, 40))).astype(np.float32)
    weight *= 10 ** random.uniform(-6, 6)
    for axis in (0, 1):
        scales = channel_scales(weight, axis, weight_range="safe", smallest=2.0**-60)
        whole = np.rint(weight / (scales[:, None] if axis == 0 else scales))
        assert max(largest_pair(channel) for channel in np.moveaxis(whole, axis, 0)) <= 128
        assert np.abs(whole).max() <= 127


def test_a_pair_counts_if_it_overflows() -> None:
    def graph_with(*weights: int) -> OnnxGraph:
        text = """(uint8[batch, 3] x) => (float[batch, 1] y) {
            a = DequantizeLinear (x, s, z)
            b = DequantizeLinear <axis = 1> (w, t, i)
            y = MatMul (a, b)
        }"""
        one = {"s": np.float32(1), "t": np.ones(1, np.float32), "z": np.uint8(0), "i": np.zeros(1, np.int8)}
        return parse(f"{HEAD} g {text}", w=np.asarray(weights, np.int8)[:, None], **map_arrays(one))

    assert not needs_vnni(graph_with(127, -127, 1))
    assert not needs_vnni(graph_with(-64, 3, -64))
    assert needs_vnni(graph_with(-65, 3, -64))
    assert needs_vnni(graph_with(2, 127, 3))


def map_arrays(values: Mapping[str, object]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.skipif(not saturates_int8(), reason="this processor does not saturate")
@pytest.mark.parametrize("weights", ["full", "safe"])
def test_the_emulation_computes_what_onnx_runtime_does_here(weights: Int8Range) -> None:
    made, image = convs_and_products(weights)
    fused = OnnxRuntimeEngine(onnxruntime, made.to_bytes(), BuildOptions(threads=1)).run({"x": image})
    assert snr_db(answer(saturated(made), image), fused["y"]) > 35
