"""Mixed int8: the fewest layers go back to float, the costliest first; what is hardly int8 any more is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.errors import PrecisionError
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import measure_reach
from edgevit.export.quantization.int8 import Layer
from edgevit.export.quantization.sensitivity import (
    Judge,
    QuantizationPlan,
    _decibel,
    _fewest,
    _most_reverted,
    _noise,
    quantize_within,
)
from edgevit.formats import Int8Scheme
from edgevit.types import Array
from tests.export.quantization.test_int8 import answer, graph, load, noise, snr_db
from tests.helpers.formats import INT8_SCHEMES

WIDTH, LAYERS = 8, 6
OUTLIER = 1000.0


def chain(*, sensitive: int | None = None) -> OnnxGraph:
    """Products that keep the size of what they read. Channel 0 of what the sensitive one reads is a thousand times as
    large as the others, and hardly counts: by one scale for all, the others are lost."""
    weights = {f"w{index}": noise(WIDTH, WIDTH, scale=WIDTH**-0.5, seed=index) for index in range(LAYERS)}
    steps, value = [], "x"
    for index in range(LAYERS):
        if index == sensitive:
            steps.append(f"loud = Mul ({value}, gain)")
            weights["gain"] = np.asarray([OUTLIER] + [1.0] * (WIDTH - 1), np.float32)
            weights[f"w{index}"][0] /= OUTLIER
            value = "loud"
        made = "y" if index == LAYERS - 1 else f"h{index}"
        steps.append(f"{made} = MatMul ({value}, w{index})")
        value = made
    return graph(f"(float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {{ {'  '.join(steps)} }}", **weights)


NAMES = (*(f"net/h{index}" for index in range(LAYERS - 1)), "net/y")
IMAGE = noise(64, WIDTH, seed=9)


def mixed(
    whole: OnnxGraph,
    judge: Judge,
    *,
    scheme: Int8Scheme = INT8_SCHEMES["openvino"],
    told: list[tuple[int, int]] | None = None,
) -> tuple[OnnxGraph, QuantizationPlan]:
    feeds = [{"x": IMAGE}]
    made, plan = quantize_within(
        whole,
        measure_reach(whole, feeds, load=load),
        scheme=scheme,
        judge=judge,
        feeds=feeds,
        load=load,
        on_layer=None if told is None else lambda done, total: told.append((done, total)),
    )
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    assert quantised_layers(made) == plan.layers - len(plan.kept)
    return made, plan


def quantised_layers(graph: OnnxGraph) -> int:
    return sum(str(value.dtype) == "INT8" and value.name.endswith("_int8")  # type: ignore[union-attr]
               for value in graph.model.graph.initializers.values())  # fmt: skip


def at_least(whole: OnnxGraph, least_db: float) -> Judge:
    """Content with an SNR."""
    want = answer(whole, IMAGE)

    def judge(candidate: OnnxGraph) -> str:
        found = snr_db(want, answer(candidate, IMAGE))
        return "" if found >= least_db else f"SNR {found:.1f} dB"

    return judge


def content_with(most: int) -> Judge:
    """Content with so many layers in int8."""
    return lambda candidate: "" if quantised_layers(candidate) <= most else "too many"


# What a judge decides


def test_a_judge_that_is_content_at_once() -> None:
    asked: list[int] = []

    def judge(candidate: OnnxGraph) -> str:
        asked.append(quantised_layers(candidate))
        return ""

    told: list[tuple[int, int]] = []
    _, plan = mixed(chain(), judge, told=told)
    assert asked == [LAYERS]
    assert told == []  # nothing was measured
    assert (plan.kept, plan.reverted, plan.fraction, plan.layers, plan.photos) == ((), (), 1.0, LAYERS, 1)
    assert (plan.activations, plan.rest) == ("uint8", "fp32")
    assert plan.summary == "6 of 6 layers in int8, 100.0% of all multiply-adds, by 1 calibration inputs"


@pytest.mark.parametrize("fmt", ["openvino", "ort", "trt"])
@pytest.mark.parametrize("sensitive", range(1, LAYERS))
def test_the_sensitive_layer_goes_back_to_float(sensitive: int, fmt: str) -> None:
    whole = chain(sensitive=sensitive)
    made, plan = mixed(whole, at_least(whole, 20), scheme=INT8_SCHEMES[fmt])
    assert [node.name for node in plan.kept] == [NAMES[sensitive]]
    assert plan.kept == plan.reverted
    (kept,) = plan.kept
    assert kept.operator == "MatMul"
    words, _, level = kept.reason.removesuffix(" dB").rpartition(" ")
    assert words == "costs accuracy: it alone in int8 leaves an SNR of"
    assert float(level) < 10
    assert plan.fraction == pytest.approx(1 - 1 / LAYERS)
    assert snr_db(answer(whole, IMAGE), answer(made, IMAGE)) >= 20


@pytest.mark.parametrize("most", range(LAYERS // 2, LAYERS))
def test_the_fewest_go_back(most: int) -> None:
    told: list[tuple[int, int]] = []
    _, plan = mixed(chain(), content_with(most), told=told)
    assert len(plan.reverted) == LAYERS - most
    assert plan.fraction == pytest.approx(most / LAYERS)
    assert told == [(index, LAYERS) for index in range(LAYERS)]


def test_a_layer_that_gains_nothing_is_kept_and_not_reverted() -> None:
    """It is not looked at either, and its reason is its own."""
    text = """(float[batch, 500] x) => (float[batch, 1] y) {
        a = MatMul (x, w)
        b = MatMul (a, v)
        c = MatMul (b, narrow)
        y = MatMul (c, small)
    }"""
    weights = {"w": noise(500, 500), "v": noise(500, 500, seed=1), "narrow": noise(500, 2), "small": noise(2, 1)}
    whole = graph(text, **{name: array / np.float32(len(array) ** 0.5) for name, array in weights.items()})
    feeds = [{"x": noise(2, 500)}]
    told: list[int] = []
    _, plan = quantize_within(
        whole,
        measure_reach(whole, feeds, load=load),
        scheme=INT8_SCHEMES["ort"],
        judge=content_with(2),
        feeds=feeds,
        load=load,
        on_layer=lambda _, total: told.append(total),
    )
    assert told == [3, 3, 3]
    assert {node.name: node.reason.split(":")[0] for node in plan.kept} == {
        plan.reverted[0].name: "costs accuracy",
        "net/y": "too small to gain by it",
    }
    content = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert content["summary"] == plan.summary
    assert [node["name"] for node in content["kept"]] == [node.name for node in plan.kept]


# What is refused


def test_where_nothing_does_the_worst_layers_are_named() -> None:
    whole = chain(sensitive=3)
    with pytest.raises(PrecisionError, match="int8 does not keep the answers: never") as caught:
        mixed(whole, lambda _: "never")
    assert caught.value.exit_status == 9
    names = str(caught.value).partition("most sensitive: ")[2].partition(")")[0].split(", ")
    assert names[0] == NAMES[3]
    assert len(names) == 5
    assert set(names) < set(NAMES)
    assert "ask for --precision fp16" in str(caught.value)


@pytest.mark.parametrize("most", [0, 1, LAYERS // 2 - 1])
def test_less_than_half_in_int8_is_refused(most: int) -> None:
    with pytest.raises(PrecisionError, match="with half of the multiply-adds back in float, too many"):
        mixed(chain(), content_with(most))


def test_one_layer_that_is_more_than_half_cannot_go_back() -> None:
    whole = graph("(float[batch, 8] x) => (float[batch, 8] y) { y = MatMul (x, w) }", w=noise(8, 8))
    with pytest.raises(PrecisionError, match="most sensitive: net/y"):
        mixed(whole, content_with(0))


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu (x)",
        "y = MatMul (x, x)",
        # A depthwise convolution with a multiplier stays float anyway.
        "t = Unsqueeze (x, axes)  a = Conv <group = 8> (t, k)  s = Squeeze (a, axes)  y = MatMul (halves, s)",
    ],
)
def test_without_a_layer_there_is_no_int8(body: str) -> None:
    weights: dict[str, Array] = (
        {"axes": np.asarray([0]), "k": noise(16, 1, 1), "halves": noise(8, 16)} if "Conv" in body else {}
    )
    whole = graph(f"(float[8, 8] x) => (float[8, 8] y) {{ {body} }}", **weights)
    feeds = [{"x": noise(8, 8)}]
    reach = measure_reach(whole, feeds, load=load)
    with pytest.raises(PrecisionError, match="no layer that would gain by int8") as caught:
        quantize_within(whole, reach, scheme=INT8_SCHEMES["ort"], judge=lambda _: "", feeds=feeds, load=load)
    assert caught.value.exit_status == 9


def test_a_graph_that_can_hardly_be_int8_is_refused() -> None:
    """One product in three has weights; the others are of what the graph computes."""
    whole = graph(
        "(float[8, 8] x) => (float[8, 8] y) { a = MatMul (x, w)  b = MatMul (a, a)  y = MatMul (b, b) }", w=noise(8, 8)
    )
    feeds = [{"x": noise(8, 8)}]
    reach = measure_reach(whole, feeds, load=load)
    with pytest.raises(PrecisionError, match="^33% of the graph's multiply-adds .* 50% have to be") as caught:
        quantize_within(whole, reach, scheme=INT8_SCHEMES["ort"], judge=lambda _: "", feeds=feeds, load=load)
    assert caught.value.exit_status == 9


# How the fewest are found


def layers(*multiply_adds: int) -> list[Layer]:
    return [
        Layer(name=str(index), operator="Conv", multiply_adds=count, activation="", output="", stays_float="")
        for index, count in enumerate(multiply_adds)
    ]


@pytest.mark.parametrize("most", range(1, 20))
def test_halving_finds_the_fewest(most: int) -> None:
    order = layers(*[1] * 20)
    for wanted in range(1, most + 1):
        asked: list[int] = []

        def content(count: int, wanted: int = wanted, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= wanted

        assert _fewest(order, most, content) == wanted
        assert len(asked) <= math.ceil(math.log2(most))
        assert len(set(asked)) == len(asked)
        assert all(0 < count < most for count in asked)  # both ends are known


@pytest.mark.parametrize(
    ("counts", "most"),
    [((1, 1, 1, 1), 2), ((1, 1, 1), 1), ((1,), 0), ((6, 5), 0), ((5, 6), 1), ((1, 1, 8), 2), ((5, 5), 1)],
)
def test_half_of_the_multiply_adds_stay(counts: tuple[int, ...], most: int) -> None:
    assert _most_reverted(layers(*counts), sum(counts) / 2) == most


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_the_loudest(damage: float) -> None:
    want = [{"y": noise(2, 3)}, {"y": noise(2, 3, seed=1)}]
    broken = want[1]["y"].copy()
    broken[1, 2] = damage
    assert _noise(want, [want[0], {"y": broken}]) == math.inf
    assert _decibel(math.inf) == -math.inf
    assert _noise(want, want) == 0
    assert _decibel(0) == math.inf
    assert _noise(want, [{"y": 1.1 * each["y"]} for each in want]) == pytest.approx(0.01, rel=1e-4)
    assert _decibel(0.01) == pytest.approx(20)


def test_a_layer_whose_reach_is_wrong_goes_back() -> None:
    """It says that nothing ever comes in, and much does."""
    whole = chain()
    feeds = [{"x": IMAGE}]
    reach = {**measure_reach(whole, feeds, load=load)}
    reach["h2"] = measure_reach(whole, [{"x": 0 * IMAGE}], load=load)["h2"]
    judge: Callable[[OnnxGraph], str] = at_least(whole, 20)
    _, plan = quantize_within(whole, reach, scheme=INT8_SCHEMES["trt"], judge=judge, feeds=feeds, load=load)
    assert [node.name for node in plan.reverted] == [NAMES[3]]


@pytest.mark.parametrize("scheme", INT8_SCHEMES.values(), ids=INT8_SCHEMES)
@pytest.mark.parametrize("operator", ["Reciprocal", "Log"])
def test_a_layer_that_reads_or_makes_infinity_stays_float(operator: str, scheme: Int8Scheme) -> None:
    """It was a traceback, or a scale of infinity in the graph."""
    whole = graph(
        f"""(float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {{
              h0 = MatMul (x, w0)  zero = Relu (h0)  far = {operator} (zero)
              h1 = MatMul (far, w1)  small = Relu (h1)  near = Clip (small, least, most)
              sum = Add (near, h0)  y = MatMul (sum, w2)
            }}""",
        **{f"w{index}": np.abs(noise(WIDTH, WIDTH, seed=index)) * (-1) ** (index == 1) for index in range(3)},
        least=np.asarray(0, np.float32),
        most=np.asarray(1, np.float32),
    )
    made, plan = mixed(whole, at_least(whole, 10), scheme=scheme)
    assert [node.name for node in plan.kept] == ["net/h1"]
    assert "not finite" in plan.kept[0].reason and plan.reverted == ()
    assert np.isfinite(answer(made, IMAGE)).all()
