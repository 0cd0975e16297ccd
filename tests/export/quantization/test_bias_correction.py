"""Corrected biases: the mean error of each channel goes, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.bias_correction import BiasCorrection, correct_biases, mean_errors
from edgevit.export.quantization.calibration import collect_ranges
from edgevit.export.quantization.int8 import find_layers, quantize
from edgevit.export.quantization.sensitivity import NoiseMeasurement, QuantizationPlan, quantize_with_fallback
from edgevit.formats import Int8Scheme
from edgevit.pipeline.precision import MIN_BIAS_ROWS
from edgevit.types import Array, Run
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import assert_same, noise
from tests.helpers.quantization import checked_graph, int8_converter, load, output, snr_db

IN, OUT = 24, 16
TOKENS = noise(6, 5, IN, seed=9) + np.linspace(-1, 3, IN, dtype=np.float32)  # each channel has a mean
IMAGES = noise(6, IN, 4, 4, seed=8) + np.linspace(-1, 3, IN, dtype=np.float32)[:, None, None]
WEIGHTS: dict[str, Array] = {
    "w": noise(IN, OUT),
    "t": noise(OUT, IN, seed=1),
    "v": noise(OUT, IN, seed=2),
    "b": noise(OUT, seed=3),
    "c": noise(IN, seed=4),
    "k": noise(OUT, IN, 3, 3, seed=5),
    "d": noise(IN, 1, 3, 3, seed=6),
}
LINEAR = f"(float[batch, 5, {IN}] x) => (float[batch, 5, {OUT}] y)"
CONV = f"(float[batch, {IN}, 4, 4] x) => (float[batch, {OUT}, 4, 4] y)"

every_scheme = pytest.mark.parametrize("fmt", INT8_SCHEMES)


CHAIN = {"net/a": ("net/r", "b"), "net/e": ("net/f", "c"), "net/g": ("net/y", "b")}  # layers: additions and biases


def chain() -> OnnxGraph:
    """Return three linear layers, one after another."""
    layers = "a = MatMul (x, w)  r = Add (a, b)  e = MatMul (r, t)  f = Add (e, c)  g = MatMul (f, w)  y = Add (g, b)"
    return checked_graph(f"{LINEAR} {{ {layers} }}", **WEIGHTS)


def biases_of(graph: OnnxGraph) -> dict[str, Array]:
    """Return the constants that Adds add, by name."""
    additions = [node for node in graph.model.graph if node.op_type == "Add"]
    return {str(node.name): array for node in additions if (array := constant(node.inputs[1])) is not None}


def feeds(rows: Array) -> list[dict[str, Array]]:
    return [{"x": row[np.newaxis]} for row in rows]


def errors_of(graph: OnnxGraph, rows: Array, scheme: Int8Scheme) -> dict[str, Array]:
    layers = [layer.name for layer in find_layers(graph)]
    ranges = collect_ranges(graph, feeds(rows), load=load)
    return mean_errors(graph, layers, ranges, feeds(rows), scheme=scheme, load=load)


def quantized(graph: OnnxGraph, rows: Array, scheme: Int8Scheme, *, correct: bool) -> OnnxGraph:
    """Return the graph with all layers in int8, with corrected biases or without."""
    ranges = collect_ranges(graph, feeds(rows), load=load)
    source = correct_biases(graph, errors_of(graph, rows, scheme)) if correct else graph
    return check(quantize(source, [layer.name for layer in find_layers(graph)], ranges, scheme=scheme))


def channel_means(values: Array) -> Array:
    """Return the mean of each channel of y: the axis of size OUT."""
    axis = values.shape.index(OUT, 1)
    means: Array = values.astype(np.float64).mean(tuple(each for each in range(values.ndim) if each != axis))
    return means


@every_scheme
@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (f"{LINEAR} {{ a = MatMul (x, w)  y = Add (a, b) }}", TOKENS),
        (f"{LINEAR} {{ a = MatMul (x, w)  y = Add (b, a) }}", TOKENS),
        (f"(float[batch, {IN}] x) => (float[batch, {OUT}] y) {{ y = Gemm (x, w, b) }}", TOKENS[:, 0]),
        (f"(float[batch, {IN}] x) => (float[batch, {OUT}] y) {{ y = Gemm <transB = 1> (x, t, b) }}", TOKENS[:, 0]),
        (f"{CONV} {{ y = Conv <pads = [1, 1, 1, 1]> (x, k, b) }}", IMAGES),
    ],
)
def test_the_mean_error_of_each_channel_goes(fmt: str, text: str, rows: Array) -> None:
    # An output in integers is rounded once more, which no bias can correct.
    scheme = replace(INT8_SCHEMES[fmt], quantize_outputs_of=frozenset(), quantize_additions=False)
    graph = checked_graph(text, **WEIGHTS)
    expected = output(graph, rows)
    plain, corrected = (quantized(graph, rows, scheme, correct=each) for each in (False, True))
    assert corrected.operators == plain.operators  # the same engine, with other numbers
    before, after = output(plain, rows), output(corrected, rows)
    error_before, error_after = (np.abs(channel_means(y - expected)).max() for y in (before, after))
    assert error_before > 1e-3
    assert error_after < error_before / 100
    assert snr_db(expected, after) > snr_db(expected, before)


@every_scheme
def test_layers_one_after_another_gain_too(fmt: str) -> None:
    """Each error is measured on the input of the fp32 graph, and that of the engine is close to it."""
    graph = checked_graph(
        f"""(float[batch, {IN}, 4, 4] x) => (float[batch, {OUT}, 4, 4] y) {{
        d1 = Conv <group = {IN}, pads = [1, 1, 1, 1]> (x, d, c)
        r = Relu (d1)
        y = Conv <pads = [1, 1, 1, 1]> (r, k, b)
    }}""",
        **WEIGHTS,
    )
    expected = output(graph, IMAGES)
    before, after = (
        output(quantized(graph, IMAGES, INT8_SCHEMES[fmt], correct=each), IMAGES) for each in (False, True)
    )
    assert np.abs(channel_means(after - expected)).max() < np.abs(channel_means(before - expected)).max()


def test_an_error_is_that_of_a_layer_alone() -> None:
    """Layers read the tensors of the fp32 graph, whatever is in int8 before them."""
    graph, scheme = chain(), INT8_SCHEMES["openvino"]
    ranges = collect_ranges(graph, feeds(TOKENS), load=load)
    together = mean_errors(graph, CHAIN, ranges, feeds(TOKENS), scheme=scheme, load=load)
    assert list(together) == list(CHAIN)
    for name, error in together.items():
        alone = mean_errors(graph, [name], ranges, feeds(TOKENS), scheme=scheme, load=load)
        np.testing.assert_array_equal(alone[name], error)


def test_a_bias_that_two_layers_share_is_corrected_for_each() -> None:
    graph = checked_graph(
        f"{LINEAR} {{ a = MatMul (x, w)  g = Add (a, b)  s = MatMul (x, u)  h = Add (s, b)  y = Mul (g, h) }}",
        **WEIGHTS,
        u=noise(IN, OUT, seed=7),
    )
    errors = errors_of(graph, TOKENS, INT8_SCHEMES["openvino"])
    corrected = check(correct_biases(graph, errors))
    biases = biases_of(corrected)
    for layer, addition in (("net/a", "net/g"), ("net/s", "net/h")):
        np.testing.assert_allclose(biases[addition], WEIGHTS["b"] - errors[layer], rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (x, w)",  # no bias
        "a = MatMul (x, w)  y = Relu (a)",
        "a = MatMul (x, w)  p = Add (a, b)  y = Add (p, a)",  # another reader of the product
        "a = MatMul (x, w)  s = Sigmoid (a)  y = Add (a, s)",  # no constant
    ],
)
def test_layers_without_a_bias_stay(body: str) -> None:
    graph = checked_graph(f"{LINEAR} {{ {body} }}", **WEIGHTS)
    assert errors_of(graph, TOKENS, INT8_SCHEMES["ort"]) == {}
    assert correct_biases(graph, {"net/a": np.ones(OUT)}).operators == graph.operators
    assert_same(graph, correct_biases(graph, {"net/a": np.ones(OUT)}), exact=True)


def test_a_scaled_bias_of_gemm_stays() -> None:
    graph = checked_graph(
        f"(float[batch, {IN}] x) => (float[batch, {OUT}] y) {{ y = Gemm <beta = 0.5> (x, w, b) }}", **WEIGHTS
    )
    assert errors_of(graph, TOKENS[:, 0], INT8_SCHEMES["ort"]) == {}


@pytest.mark.parametrize("opset", [17, 18])
def test_older_opsets_have_the_axes_of_a_mean_elsewhere(opset: int) -> None:
    graph = checked_graph(f"{LINEAR} {{ a = MatMul (x, w)  y = Add (a, b) }}", **WEIGHTS)
    model = graph.model.clone()
    model.opset_imports[""] = opset
    scheme = INT8_SCHEMES["ort"]
    np.testing.assert_array_equal(
        errors_of(OnnxGraph(model), TOKENS, scheme)["net/a"], errors_of(graph, TOKENS, scheme)["net/a"]
    )


def test_layers_in_float_keep_their_biases() -> None:
    """Those that go back to float for their accuracy too; the errors are measured once."""
    graph = chain()
    measured: list[int] = []
    correction = BiasCorrection(feeds=feeds(TOKENS), load=load, on_feed=lambda done, _: measured.append(done))

    def in_int8(candidate: OnnxGraph) -> int:
        return candidate.operators["QuantizeLinear"]

    result, plan = quantize_with_fallback(
        graph,
        collect_ranges(graph, feeds(TOKENS), load=load),
        scheme=INT8_SCHEMES["openvino"],
        acceptance_check=lambda candidate: "" if in_int8(candidate) <= 2 else "three layers are too many",
        measurement=NoiseMeasurement(feeds=feeds(TOKENS), load=load),
        bias_correction=correction,
    )
    (reverted,) = plan.reverted
    biases = biases_of(result)
    for layer, (addition, bias) in CHAIN.items():
        assert np.array_equal(biases[addition], WEIGHTS[bias]) == (layer == reverted.name)
    assert measured == list(range(len(TOKENS)))


@pytest.mark.parametrize("body", ["y = Add (p, b)", "m = Sigmoid (b)  y = Add (p, m)"])
def test_a_product_of_activations_has_no_bias(body: str) -> None:
    """`edgevit tune` names it among the layers if int8 made it faster."""
    text = f"(float[batch, 5, {OUT}] x, float[batch, {OUT}, {OUT}] z) => (float[batch, 5, {OUT}] y)"
    graph = checked_graph(f"{text} {{ p = MatMul (x, z)  {body} }}", b=WEIGHTS["b"])
    inputs = {"x": noise(2, 5, OUT), "z": noise(2, OUT, OUT, seed=1)}
    ranges = collect_ranges(graph, [inputs], load=load)
    assert mean_errors(graph, ["net/p"], ranges, [inputs], scheme=INT8_SCHEMES["ort"], load=load) == {}


def test_a_sum_without_dimensions_has_no_bias() -> None:
    extremes = "l = ReduceMax <keepdims = 0> (a)  h = ReduceMin <keepdims = 0> (a)"
    body = f"a = MatMul (x, w)  {extremes}  s = Add (l, h)  y = Add (a, s)"
    graph = checked_graph(f"{LINEAR} {{ {body} }}", w=WEIGHTS["w"])
    ranges = collect_ranges(graph, feeds(TOKENS), load=load)
    assert mean_errors(graph, ["net/s"], ranges, feeds(TOKENS), scheme=INT8_SCHEMES["ort"], load=load) == {}


def test_biases_stay_if_the_graph_is_accepted_without_their_correction_alone() -> None:
    graph, ranges = chain(), collect_ranges(chain(), feeds(TOKENS), load=load)

    def as_they_were(candidate: OnnxGraph) -> str:
        biases = biases_of(candidate)
        return "" if all(np.array_equal(biases[name], WEIGHTS[bias]) for name, bias in CHAIN.values()) else "corrected"

    result, plan = quantize_with_fallback(
        graph,
        ranges,
        scheme=INT8_SCHEMES["openvino"],
        acceptance_check=as_they_were,
        measurement=NoiseMeasurement(feeds=feeds(TOKENS), load=load),
        bias_correction=BiasCorrection(feeds=feeds(TOKENS), load=load),
    )
    assert not as_they_were(result) and not plan.reverted and plan.corrected_biases == 0


def test_errors_are_measured_once_for_a_graph(tmp_path: Path) -> None:
    graph, scheme = chain(), INT8_SCHEMES["openvino"]
    ranges = collect_ranges(graph, feeds(TOKENS), load=load)
    names = [layer.name for layer in find_layers(graph)]
    loads: list[OnnxGraph] = []

    def counted(candidate: OnnxGraph) -> Run:
        loads.append(candidate)
        return load(candidate)

    def errors(scheme: Int8Scheme) -> dict[str, Array]:
        correction = BiasCorrection(feeds=feeds(TOKENS), load=counted, cache=tmp_path)
        correction.measure(graph, names, ranges, scheme=scheme)
        return dict(correction.errors or {})

    first, second = errors(scheme), errors(scheme)
    assert len(loads) == 1 and first.keys() == second.keys() == CHAIN.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    errors(replace(scheme, weight_range="full"))
    assert len(loads) == 2  # other weights, other errors
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert errors(scheme).keys() == first.keys() and len(loads) == 3


@pytest.mark.parametrize("fmt", ["ort", "openvino", "trt"])
@pytest.mark.parametrize("inputs", [MIN_BIAS_ROWS - 1, MIN_BIAS_ROWS])
def test_an_export_corrects_the_biases_with_enough_calibration_inputs(
    fmt: str, inputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path))
    graph = chain()
    expected = output(graph, TOKENS)
    calibration = np.resize(TOKENS, (inputs, *TOKENS.shape[1:]))
    converter = int8_converter(graph, TOKENS, fmt=fmt, calibration=calibration)
    corrected, plan = converter.convert()
    plain = quantized(graph, TOKENS, INT8_SCHEMES[fmt], correct=False)
    error_after, error_before = (np.abs(channel_means(output(each, TOKENS) - expected)) for each in (corrected, plain))
    assert isinstance(plan, QuantizationPlan)
    if inputs < MIN_BIAS_ROWS:
        assert plan.corrected_biases == 0 and error_after.max() > 0.9 * error_before.max()
    else:
        assert plan.corrected_biases == len(CHAIN) and error_after.max() < error_before.max() / 2
