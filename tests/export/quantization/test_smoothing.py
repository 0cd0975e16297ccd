"""Smoothed channels: fp32 results stay equal bit by bit, and they are kept only where int8 loses less."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.bias_correction import mean_errors, mean_errors_of_all
from edgevit.export.quantization.calibration import ValueRange, collect_ranges
from edgevit.export.quantization.int8 import find_layers, quantize
from edgevit.export.quantization.sensitivity import QuantizationPlan
from edgevit.export.quantization.smoothing import Smoothing, channel_axes, find_norms, smoothing_of
from edgevit.export.quantization.smoothing_choice import SmoothedGraph, choose_smoothing, least_noise, norms_of
from edgevit.pipeline.precision import MIN_BIAS_ROWS
from edgevit.types import Array, Run
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import noise
from tests.helpers.quantization import checked_graph, int8_converter, load, output, snr_db

IN, OUT = 32, 24
TOKENS = noise(6, 4, IN, seed=9)
MAPS = noise(6, IN, 4, 4, seed=8)
OUTLIERS = np.where(np.arange(IN) % 8 == 0, 40, 1).astype(np.float32)  # of four channels
WEIGHTS: dict[str, Array] = {
    "g": noise(IN, offset=1, scale=0.2) * OUTLIERS,
    "s": noise(IN, seed=2) * OUTLIERS,
    "w": noise(IN, OUT, seed=3) / OUTLIERS[:, None],
    "u": noise(IN, OUT, seed=4) / OUTLIERS[:, None],
    "t": noise(OUT, IN, seed=5) / OUTLIERS,
    "k": noise(OUT, IN, 3, 3, seed=6) / OUTLIERS[:, None, None],
    "b": noise(OUT, seed=7),
    "rows": np.array([[3, 0], [1, 2]], np.int64),
    "moved": np.array([-1, 2, 2, IN], np.int64),
    "mixed": np.array([-1, 8, IN // 2], np.int64),
    "places": np.array([0, 2, 1], np.int64),
}
LINEAR = f"(float[batch, 4, {IN}] x) => (float[batch, 4, {OUT}] y)"
CONV = f"(float[batch, {IN}, 4, 4] x) => (float[batch, {OUT}, 4, 4] y)"
NORMED = f"<float[batch, {IN}, 4, 4] n>"  # ONNX infers no shape of a GroupNormalization
NORM = "n = LayerNormalization (x, g, s)"
CONVOLUTION = "y = Conv <pads = [1, 1, 1, 1]> (n, k, b)"

every_scheme = pytest.mark.parametrize("fmt", INT8_SCHEMES)


def graph_of(text: str, **others: Array) -> OnnxGraph:
    used = {name: array for name, array in {**WEIGHTS, **others}.items() if re.search(rf"[ (]{name}[,)]", text)}
    return checked_graph(text, **used)


def block() -> OnnxGraph:
    """Return a norm with two readers, as attention and the layers of an MLP have it."""
    layers = "a = MatMul (n, w)  c = Add (a, b)  d = MatMul (n, u)  e = Add (d, b)  y = Mul (c, e)"
    return graph_of(f"{LINEAR} {{ {NORM}  {layers} }}")


def misled() -> OnnxGraph:
    """Return a layer that smoothing harms: an output that hardly counts has the largest weights.

    They are those of one input channel, which is scaled up for them until the other channels have few steps left.
    """
    w = noise(IN, OUT, seed=3)
    w[0, 0] = 1000
    small = np.where(np.arange(OUT) == 0, 1e-4, 1).astype(np.float32)
    text = f"{LINEAR} {{ n = LayerNormalization (x, f)  a = MatMul (n, w)  c = Add (a, b)  y = Mul (c, m) }}"
    return checked_graph(text, w=w, b=WEIGHTS["b"], f=np.ones(IN, np.float32), m=small)


def feeds(rows: Array) -> list[dict[str, Array]]:
    return [{"x": row[np.newaxis]} for row in rows]


def layers_of(graph: OnnxGraph) -> list[str]:
    return [layer.name for layer in find_layers(graph)]


def ranges_of(graph: OnnxGraph, rows: Array) -> dict[str, ValueRange]:
    axes = channel_axes(find_norms(graph, layers_of(graph)))
    return collect_ranges(graph, feeds(rows), load=load, channel_axes=axes)


def smoothing(graph: OnnxGraph, rows: Array, alpha: float = 0.5) -> Smoothing:
    found = smoothing_of(find_norms(graph, layers_of(graph)), ranges_of(graph, rows), alpha=alpha)
    assert found is not None
    return found


def int8_snr_db(graph: OnnxGraph, ranges: dict[str, ValueRange], rows: Array, fmt: str) -> float:
    quantized = check(quantize(graph, layers_of(graph), ranges, scheme=INT8_SCHEMES[fmt]))
    return snr_db(output(graph, rows), output(quantized, rows))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (f"{LINEAR} {{ {NORM}  a = MatMul (n, w)  y = Add (a, b) }}", TOKENS),
        (f"{LINEAR} {{ n = LayerNormalization (x, g)  a = MatMul (n, w)  d = MatMul (n, u)  y = Mul (a, d) }}", TOKENS),
        (
            f"""(float[batch, 4, {IN}] x) => (float[batch, {OUT}] y) {{
            {NORM}  c = Gather <axis = 1> (n, first)  y = Gemm <transB = 1> (c, t, b)
        }}""",
            TOKENS,
        ),
        (
            f"""(float[batch, 4, {IN}] x) => (float[batch, 2, 2, {OUT}] y) {{
            {NORM}  r = Gather <axis = 1> (n, rows)  p = Transpose <perm = [0, 2, 1, 3]> (r)  y = MatMul (p, w)
        }}""",
            TOKENS,
        ),
        (
            f"""(float[batch, 4, {IN}] x) => (float[batch, 2, 2, {OUT}] y) {{
            {NORM}  r = Reshape (n, moved)  y = MatMul (r, w)
        }}""",
            TOKENS,
        ),
        (f"{CONV} {NORMED} {{ n = GroupNormalization <num_groups = 1> (x, g, s)  {CONVOLUTION} }}", MAPS),
        (f"{CONV} {{ n = InstanceNormalization (x, g, s)  {CONVOLUTION} }}", MAPS),
    ],
)
def test_fp32_stays_equal_bit_by_bit_and_int8_gains(text: str, rows: Array) -> None:
    graph = graph_of(text, first=np.asarray(2, np.int64))
    found = smoothing(graph, rows)
    smoothed = check(found.apply(graph))
    assert np.array_equal(output(graph, rows), output(smoothed, rows))
    assert smoothed.operators == graph.operators  # the same engine, with other numbers
    ranges = ranges_of(graph, rows)
    before = int8_snr_db(graph, ranges, rows, "openvino")
    assert int8_snr_db(smoothed, found.ranges(ranges), rows, "openvino") > before + 6


def test_the_ranges_are_those_of_the_smoothed_graph() -> None:
    graph = block()
    found = smoothing(graph, TOKENS)
    scaled, measured = found.ranges(ranges_of(graph, TOKENS)), ranges_of(found.apply(graph), TOKENS)
    assert {name: (each.low, each.high) for name, each in scaled.items()} == {
        name: (each.low, each.high) for name, each in measured.items()
    }
    assert scaled["n"].channel_lows == measured["n"].channel_lows
    assert scaled["n"].magnitude < ranges_of(graph, TOKENS)["n"].magnitude / 4


def test_all_readers_share_the_scales_and_one_quantizer() -> None:
    graph = block()
    found = smoothing(graph, TOKENS)
    assert found.readers == ("net/a", "net/d")
    scheme = INT8_SCHEMES["openvino"]
    ranges = ranges_of(graph, TOKENS)
    before = quantize(graph, layers_of(graph), ranges, scheme=scheme)
    after = quantize(found.apply(graph), layers_of(graph), found.ranges(ranges), scheme=scheme)
    assert after.operators == before.operators and after.operators["QuantizeLinear"] == 1


def test_a_reader_in_float_shares_the_scales_too() -> None:
    graph = block()
    (norm,) = find_norms(graph, ["net/a"])
    assert norm.readers == ("net/a", "net/d")
    found = smoothing_of([norm], ranges_of(graph, TOKENS), alpha=0.5)
    assert found is not None
    assert np.array_equal(output(graph, TOKENS), output(check(found.apply(graph)), TOKENS))
    assert find_norms(graph, []) == ()


@pytest.mark.parametrize(
    "text",
    [
        f"{LINEAR} {{ {NORM}  a = MatMul (n, w)  q = Sigmoid (n)  c = MatMul (q, u)  y = Add (a, c) }}",  # other reader
        f"""(float[batch, 4, {IN}] x) => (float[batch, 4, {OUT}] y, float[batch, 4, {IN}] n) {{
            {NORM}  y = MatMul (n, w)
        }}""",
        f"{LINEAR} {{ {NORM}  a = MatMul (n, w)  c = MatMul (x, w)  y = Add (a, c) }}",  # a weight of two layers
        f"{LINEAR} {{ z = Sigmoid (g)  n = LayerNormalization (x, z)  y = MatMul (n, w) }}",  # a scale that is computed
        # Rows of channels are split up.
        f"""(float[batch, 4, {IN}] x) => (float[batch, 8, {OUT}] y) {{
            {NORM}  r = Reshape (n, mixed)  y = MatMul (r, h)
        }}""",
        f"""(float[batch, 4, {IN}] x) => (float[batch, {IN}, {OUT}] y) {{
            {NORM}  r = Transpose <perm = [0, 2, 1]> (n)  y = MatMul (r, v)
        }}""",
        f"""(float[batch, 4, {IN}] x) => (float[batch, 4, 3] y) {{
            {NORM}  r = Gather <axis = 2> (n, places)  y = MatMul (r, p)
        }}""",
        # The kernel's input channels are those of a group.
        f"""{CONV} {NORMED} {{
            n = GroupNormalization <num_groups = 1> (x, g, s)
            y = Conv <pads = [1, 1, 1, 1], group = 2> (n, k2, b)
        }}""",
        f"{LINEAR} {{ n = LayerNormalization <axis = 1> (x, g2)  y = MatMul (n, w) }}",  # over rows and channels
        f"{LINEAR} {{ q = Mul (x, g)  y = MatMul (q, w) }}",  # no norm
    ],
)
def test_near_misses_stay(text: str) -> None:
    others = {
        "h": noise(IN // 2, OUT),
        "v": noise(4, OUT),
        "p": noise(3, 3),
        "k2": noise(OUT, IN // 2, 3, 3),
        "g2": noise(4, IN),
    }
    graph = graph_of(text, **others)
    assert find_norms(graph, layers_of(graph)) == ()


def test_channels_that_are_alike_stay() -> None:
    weights = {"g": np.ones(IN, np.float32), "w": np.full((IN, OUT), 0.25, np.float32)}
    graph = checked_graph(f"{LINEAR} {{ n = LayerNormalization (x, g)  y = MatMul (n, w) }}", **weights)
    rows = np.sign(TOKENS)
    norms = find_norms(graph, layers_of(graph))
    assert norms and smoothing_of(norms, ranges_of(graph, rows), alpha=0.5) is None


def test_a_norm_that_is_not_finite_stays() -> None:
    graph = block()
    ranges = ranges_of(graph, TOKENS)
    infinite = replace(ranges["n"], channel_highs=(np.inf,) * IN)
    assert smoothing_of(find_norms(graph, layers_of(graph)), {**ranges, "n": infinite}, alpha=0.5) is None


@every_scheme
def test_errors_from_one_run_are_those_of_each_smoothed_graph(fmt: str) -> None:
    graph, scheme = block(), INT8_SCHEMES[fmt]
    ranges, found = ranges_of(graph, TOKENS), [smoothing(graph, TOKENS, alpha) for alpha in (0.5, 0.75)]
    together = mean_errors_of_all(graph, layers_of(graph), ranges, found, feeds(TOKENS), scheme=scheme, load=load)
    alone = [mean_errors(graph, layers_of(graph), ranges, feeds(TOKENS), scheme=scheme, load=load)]
    for each in found:
        smoothed, of_smoothed = each.apply(graph), each.ranges(ranges)
        alone.append(mean_errors(smoothed, layers_of(graph), of_smoothed, feeds(TOKENS), scheme=scheme, load=load))
    for errors, expected in zip(together, alone, strict=True):
        assert errors.keys() == expected.keys() == {"net/a", "net/d"}
        for name, error in errors.items():
            np.testing.assert_allclose(error, expected[name], rtol=1e-4, atol=1e-6)


def chosen(
    graph: OnnxGraph, fmt: str, cache: Path | None = None, loads: list[OnnxGraph] | None = None
) -> SmoothedGraph:
    def counted(candidate: OnnxGraph) -> Run:
        (loads if loads is not None else []).append(candidate)
        return load(candidate)

    scheme = INT8_SCHEMES[fmt]
    axes = channel_axes(norms_of(graph, scheme))
    ranges = collect_ranges(graph, feeds(TOKENS), load=load, channel_axes=axes)
    return choose_smoothing(graph, ranges, feeds(TOKENS), compared=4, scheme=scheme, load=counted, cache=cache)


@every_scheme
def test_outliers_are_smoothed(fmt: str) -> None:
    graph = block()
    found = chosen(graph, fmt)
    assert found.smoothing is not None and found.count_layers(()) == 2
    ranges = dict(found.ranges)
    assert int8_snr_db(found.graph, ranges, TOKENS, fmt) > int8_snr_db(graph, ranges_of(graph, TOKENS), TOKENS, fmt) + 6


@every_scheme
def test_smoothing_that_adds_noise_is_left_away(fmt: str) -> None:
    graph = misled()
    worse = smoothing(graph, TOKENS)
    before = int8_snr_db(graph, ranges_of(graph, TOKENS), TOKENS, fmt)
    assert int8_snr_db(worse.apply(graph), worse.ranges(ranges_of(graph, TOKENS)), TOKENS, fmt) < before - 3
    found = chosen(graph, fmt)
    assert found.smoothing is None and found.graph is graph and found.count_layers(()) == 0
    assert found.errors is not None and found.errors.keys() == {"net/a"}  # measured already


@pytest.mark.parametrize(
    ("noise_of_feeds", "best"),
    [
        ([[3, 4, 5], [2, 3, 3], [3, 3, 3]], 1),
        ([[3, 4, 5], [3, 4, 5]], 0),
        ([[3, 4, 5], [9, 4, 0.5], [4, 4, 5]], 0),  # no gain
        ([[3, 4, 5], [5, 5, 0.5]], 0),  # on one input alone
        ([[3.0], [2.0]], 1),
        ([[np.inf, 1], [1, 1]], 0),
        ([[1, 1], [np.nan, 0.5]], 0),
    ],
)
def test_a_gain_that_could_be_chance_does_not_count(noise_of_feeds: list[list[float]], best: int) -> None:
    assert least_noise(np.asarray(noise_of_feeds)) == best


def test_a_graph_without_norms_is_not_measured() -> None:
    loads: list[OnnxGraph] = []
    found = chosen(graph_of(f"{LINEAR} {{ y = MatMul (x, w) }}"), "ort", loads=loads)
    assert found.smoothing is None and found.errors is None and not loads


def test_the_choice_is_made_once_for_a_graph(tmp_path: Path) -> None:
    loads: list[OnnxGraph] = []
    first, second = (chosen(block(), "openvino", tmp_path, loads) for _ in range(2))
    assert len(loads) == 4  # the errors, fp32, and int8 without and with smoothing
    assert first.smoothing is not None and second.smoothing is not None
    np.testing.assert_equal(second.smoothing.scales, first.smoothing.scales)
    assert first.errors is not None and second.errors is not None
    assert all(np.array_equal(error, second.errors[name]) for name, error in first.errors.items())
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert chosen(block(), "openvino", tmp_path, loads).smoothing is not None and len(loads) == 8


@every_scheme
@pytest.mark.parametrize("inputs", [MIN_BIAS_ROWS - 1, MIN_BIAS_ROWS])
def test_an_export_smooths_with_enough_calibration_inputs(
    fmt: str, inputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path))
    graph = block()
    calibration = np.resize(TOKENS, (inputs, *TOKENS.shape[1:]))
    converter = int8_converter(graph, TOKENS, fmt=fmt, calibration=calibration, check_parity=False)
    quantized, plan = converter.convert()
    assert isinstance(plan, QuantizationPlan) and not plan.kept
    is_smoothed = inputs >= MIN_BIAS_ROWS
    assert ("smooth" in [record.name for record in quantized.history]) == is_smoothed
    assert (plan.smoothed_layers, plan.corrected_biases) == ((2, 2) if is_smoothed else (0, 0))
    assert plan.to_json()["smoothed_layers"] == plan.smoothed_layers
