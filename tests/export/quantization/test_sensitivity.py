"""int8 with fallback: the fewest layers go back to float, the noisiest first; a graph with too little int8 fails."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.errors import PrecisionError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import collect_ranges
from edgevit.export.quantization.int8 import Layer, find_layers
from edgevit.export.quantization.sensitivity import (
    AcceptanceCheck,
    LayerChoice,
    NoiseMeasurement,
    QuantizationPlan,
    _max_reverted,
    _min_reverted,
    quantize_with_fallback,
    worst_noise_to_signal,
)
from edgevit.formats import Int8Scheme
from edgevit.runtimes.parity import compare
from edgevit.types import Array, Reference, Run
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import noise
from tests.helpers.quantization import checked_graph, load, output, snr_db

WIDTH, LAYERS = 8, 6
OUTLIER = 1000.0


def matmul_chain(*, sensitive: int | None = None) -> OnnxGraph:
    """Return a chain of matmuls that keep the magnitude of their input.

    Channel 0 of the sensitive layer's input is a thousand times larger than the others and hardly counts, so that with
    one scale for all channels the others are lost.
    """
    weights = {f"w{index}": noise(WIDTH, WIDTH, scale=WIDTH**-0.5, seed=index) for index in range(LAYERS)}
    steps, value = [], "x"
    for index in range(LAYERS):
        if index == sensitive:
            steps.append(f"outlier = Mul ({value}, gain)")
            weights["gain"] = np.asarray([OUTLIER] + [1.0] * (WIDTH - 1), np.float32)
            weights[f"w{index}"][0] /= OUTLIER
            value = "outlier"
        result = "y" if index == LAYERS - 1 else f"h{index}"
        steps.append(f"{result} = MatMul ({value}, w{index})")
        value = result
    signature = f"(float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y)"
    return checked_graph(f"{signature} {{ {'  '.join(steps)} }}", **weights)


NAMES = (*(f"net/h{index}" for index in range(LAYERS - 1)), "net/y")
IMAGE = noise(64, WIDTH, seed=9)


def quantize_checked(
    graph: OnnxGraph,
    acceptance_check: AcceptanceCheck,
    *,
    scheme: Int8Scheme = INT8_SCHEMES["openvino"],
    progress: list[tuple[int, int]] | None = None,
    choice: LayerChoice | None = None,
) -> tuple[OnnxGraph, QuantizationPlan]:
    """Quantize and check that the graph is valid and agrees with its plan."""
    feeds = [{"x": IMAGE}]
    quantized, plan = quantize_with_fallback(
        graph,
        collect_ranges(graph, feeds, load=load),
        scheme=scheme,
        acceptance_check=acceptance_check,
        measurement=NoiseMeasurement(
            feeds=feeds,
            load=load,
            on_layer=None if progress is None else lambda done, total: progress.append((done, total)),
        ),
        choice=choice,
    )
    onnx.checker.check_model(ir.to_proto(quantized.model), full_check=True)
    assert int8_layers(quantized) == plan.layers - len(plan.kept)
    return quantized, plan


def int8_layers(graph: OnnxGraph) -> int:
    return sum(str(value.dtype) == "INT8" and value.name.endswith("_int8")  # type: ignore[union-attr]
               for value in graph.model.graph.initializers.values())  # fmt: skip


def requires_snr(graph: OnnxGraph, min_db: float) -> AcceptanceCheck:
    expected = output(graph, IMAGE)

    def rejection_reason(candidate: OnnxGraph) -> str:
        found = snr_db(expected, output(candidate, IMAGE))
        return "" if found >= min_db else f"SNR {found:.1f} dB"

    return rejection_reason


def accepts_at_most(count: int) -> AcceptanceCheck:
    """Accept graphs with at most this many layers in int8."""
    return lambda candidate: "" if int8_layers(candidate) <= count else "too many"


# The choice of layers


def test_all_layers_stay_in_int8_if_that_is_accepted() -> None:
    checked: list[int] = []

    def rejection_reason(candidate: OnnxGraph) -> str:
        checked.append(int8_layers(candidate))
        return ""

    progress: list[tuple[int, int]] = []
    _, plan = quantize_checked(matmul_chain(), rejection_reason, progress=progress)
    assert checked == [LAYERS]
    assert progress == []  # no sensitivity was measured
    assert (plan.kept, plan.reverted, plan.fraction, plan.layers, plan.calibration_inputs) == ((), (), 1.0, LAYERS, 1)
    assert (plan.activations, plan.float_dtype) == ("uint8", "fp32")
    assert plan.summary == "6 of 6 layers in int8, 100.0% of all MACs, from 1 calibration inputs"


def test_the_layers_of_named_modules_stay_in_float() -> None:
    graph = matmul_chain()
    modules = ("stem", "net.0", "net.1", "net.10", "net.1.q", "head")
    for node, module in zip(graph.model.graph, modules, strict=True):
        node.name = f"{module}/MatMul"
    _, plan = quantize_checked(graph, lambda _: "", choice=LayerChoice(modules=["net.1"]))
    assert [node.name for node in plan.kept] == ["net.1/MatMul", "net.1.q/MatMul"]
    assert {node.reason for node in plan.kept} == {"kept in float by --keep-float"}
    with pytest.raises(UsageError, match=r"no operator of the graph belongs to a module 'heat'. Did you mean 'head'"):
        quantize_checked(graph, lambda _: "", choice=LayerChoice(modules=["heat"]))


@pytest.mark.parametrize("fmt", ["openvino", "ort", "trt"])
@pytest.mark.parametrize("sensitive", range(1, LAYERS))
def test_the_sensitive_layer_goes_back_to_float(sensitive: int, fmt: str) -> None:
    graph = matmul_chain(sensitive=sensitive)
    quantized, plan = quantize_checked(graph, requires_snr(graph, 20), scheme=INT8_SCHEMES[fmt])
    assert [node.name for node in plan.kept] == [NAMES[sensitive]]
    assert plan.kept == plan.reverted
    (kept,) = plan.kept
    assert kept.operator == "MatMul"
    before, _, after = kept.reason.partition(" dB ")
    assert before.startswith("costs accuracy: SNR ")
    assert after == "with this layer alone in int8"
    assert float(before.rpartition(" ")[2]) < 10
    assert plan.fraction == pytest.approx(1 - 1 / LAYERS)
    assert snr_db(output(graph, IMAGE), output(quantized, IMAGE)) >= 20


@pytest.mark.parametrize("count", range(LAYERS // 2, LAYERS))
def test_the_fewest_layers_go_back_to_float(count: int) -> None:
    progress: list[tuple[int, int]] = []
    _, plan = quantize_checked(matmul_chain(), accepts_at_most(count), progress=progress)
    assert len(plan.reverted) == LAYERS - count
    assert plan.fraction == pytest.approx(count / LAYERS)
    assert progress == [(index, LAYERS) for index in range(LAYERS)]


def test_a_layer_that_int8_does_not_speed_up_is_kept_and_not_reverted() -> None:
    """Its sensitivity is not measured, and the plan gives the reason."""
    text = """(float[batch, 500] x) => (float[batch, 1] y) {
        a = MatMul (x, w)
        b = MatMul (a, v)
        c = MatMul (b, narrow)
        y = MatMul (c, small)
    }"""
    weights = {
        "w": noise(500, 500, seed=0),
        "v": noise(500, 500, seed=1),
        "narrow": noise(500, 2, seed=0),
        "small": noise(2, 1, seed=0),
    }
    graph = checked_graph(text, **{name: array / np.float32(len(array) ** 0.5) for name, array in weights.items()})
    feeds = [{"x": noise(2, 500, seed=0)}]
    totals: list[int] = []
    _, plan = quantize_with_fallback(
        graph,
        collect_ranges(graph, feeds, load=load),
        scheme=INT8_SCHEMES["ort"],
        acceptance_check=accepts_at_most(2),
        measurement=NoiseMeasurement(feeds=feeds, load=load, on_layer=lambda _, total: totals.append(total)),
    )
    assert totals == [3, 3, 3]
    assert {node.name: node.reason.split(":")[0] for node in plan.kept} == {
        plan.reverted[0].name: "costs accuracy",
        "net/y": "too small to gain speed",
    }
    content = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert content["summary"] == plan.summary
    assert [node["name"] for node in content["kept"]] == [node.name for node in plan.kept]


def test_the_plan_keeps_its_json_keys() -> None:
    _, plan = quantize_checked(matmul_chain(), lambda _: "")
    assert plan.to_json() == {
        "summary": plan.summary,
        "activations": "uint8",
        "rest": "fp32",
        "layers": LAYERS,
        "kept": (),
        "share": 1.0,
        "photos": 1,
        "weight_range": "safe",
        "needs_vnni": False,
        "groups": [],
        "corrected_biases": 0,
        "smoothed_layers": 0,
    }


# Graphs without int8


def test_the_error_names_the_most_sensitive_layers() -> None:
    with pytest.raises(PrecisionError, match="int8 changes the outputs too much: never") as caught:
        quantize_checked(matmul_chain(sensitive=3), lambda _: "never")
    assert caught.value.exit_status == 9
    names = str(caught.value).partition("most sensitive: ")[2].partition(")")[0].split(", ")
    assert names[0] == NAMES[3]
    assert len(names) == 5
    assert set(names) < set(NAMES)
    assert "use --precision fp16" in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, LAYERS // 2 - 1])
def test_less_than_half_in_int8_fails(count: int) -> None:
    with pytest.raises(PrecisionError, match="with half of the MACs back in float, too many"):
        quantize_checked(matmul_chain(), accepts_at_most(count))


def test_a_layer_with_more_than_half_of_the_macs_cannot_go_back_to_float() -> None:
    graph = checked_graph("(float[batch, 8] x) => (float[batch, 8] y) { y = MatMul (x, w) }", w=noise(8, 8, seed=0))
    with pytest.raises(PrecisionError, match="most sensitive: net/y"):
        quantize_checked(graph, accepts_at_most(0))


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu (x)",
        "y = MatMul (x, x)",
        # A depthwise convolution with a channel multiplier stays in float.
        "t = Unsqueeze (x, axes)  a = Conv <group = 8> (t, k)  s = Squeeze (a, axes)  y = MatMul (halves, s)",
    ],
)
def test_a_graph_without_layers_for_int8_fails(body: str) -> None:
    weights: dict[str, Array] = (
        {"axes": np.asarray([0]), "k": noise(16, 1, 1, seed=0), "halves": noise(8, 16, seed=0)}
        if "Conv" in body
        else {}
    )
    graph = checked_graph(f"(float[8, 8] x) => (float[8, 8] y) {{ {body} }}", **weights)
    with pytest.raises(PrecisionError, match="int8 would not speed up any layer") as caught:
        quantize_accepting_all(graph)
    assert caught.value.exit_status == 9


def test_a_graph_with_too_few_macs_in_layers_fails() -> None:
    """One matmul in three has constant weights."""
    graph = checked_graph(
        "(float[8, 8] x) => (float[8, 8] y) { a = MatMul (x, w)  b = MatMul (a, a)  y = MatMul (b, b) }",
        w=noise(8, 8, seed=0),
    )
    with pytest.raises(PrecisionError, match="^only 33% of the graph's MACs .* 50% are required") as caught:
        quantize_accepting_all(graph)
    assert caught.value.exit_status == 9


def quantize_accepting_all(graph: OnnxGraph) -> None:
    feeds = [{"x": noise(8, 8, seed=0)}]
    ranges = collect_ranges(graph, feeds, load=load)
    quantize_with_fallback(
        graph,
        ranges,
        scheme=INT8_SCHEMES["ort"],
        acceptance_check=lambda _: "",
        measurement=NoiseMeasurement(feeds=feeds, load=load),
    )


def test_more_layers_go_back_on_request_and_their_noise_is_measured_once() -> None:
    graph, feeds, loads = matmul_chain(sensitive=2), [{"x": IMAGE}], list[OnnxGraph]()

    def counting_load(each: OnnxGraph) -> Run:
        loads.append(each)
        return load(each)

    measurement = NoiseMeasurement(feeds=feeds, load=counting_load)

    def reverted(count: int) -> set[str]:
        _, plan = quantize_with_fallback(
            graph, collect_ranges(graph, feeds, load=load), scheme=INT8_SCHEMES["ort"], acceptance_check=lambda _: "",
            measurement=measurement, choice=LayerChoice(min_reverted=count),
        )  # fmt: skip
        return {node.name for node in plan.reverted}

    assert reverted(1) == {NAMES[2]}
    assert measurement.noise is not None
    assert len(loads) == LAYERS + 1 == len(measurement.noise) + 1
    assert len(reverted(2)) == 2 and NAMES[2] in reverted(2)
    assert len(loads) == LAYERS + 1
    with pytest.raises(PrecisionError, match="layers have to be in float, and at least 50% of the MACs in int8"):
        reverted(LAYERS)


def test_an_interrupted_measurement_is_taken_again_as_a_whole() -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise StoppedError

    graph, layers = matmul_chain(), find_layers(matmul_chain())
    measurement = NoiseMeasurement(feeds=[{"x": IMAGE}], load=load, on_layer=stop)
    with pytest.raises(StoppedError):
        measurement.by_layer(graph, layers, lambda _: graph)
    measurement.on_layer = None
    assert measurement.by_layer(graph, layers, lambda _: graph).keys() == {layer.name for layer in layers}


# Parts


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize("limit", range(4, 20))
def test_binary_search_finds_the_fewest(limit: int, least: int) -> None:
    for expected in range(least, limit + 1):
        tried: list[int] = []

        def accepts(count: int, expected: int = expected, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= expected

        assert _min_reverted(least, limit, accepts) == expected
        assert len(tried) <= math.ceil(math.log2(limit))
        assert len(set(tried)) == len(tried)
        assert all(least <= count < limit for count in tried)  # the limit is known


@pytest.mark.parametrize(
    ("macs", "count"),
    [((1, 1, 1, 1), 2), ((1, 1, 1), 1), ((1,), 0), ((6, 5), 0), ((5, 6), 1), ((1, 1, 8), 2), ((5, 5), 1)],
)
def test_half_of_the_macs_stay_in_int8(macs: tuple[int, ...], count: int) -> None:
    layers = [
        Layer(
            name=str(index), operator="Conv", macs=each, activation="", output="", skip_reason="", groups=("", "", "")
        )
        for index, each in enumerate(macs)
    ]
    assert _max_reverted(layers, sum(macs) / 2) == count


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_infinite_noise(damage: float) -> None:
    expected = [{"y": noise(2, 3, seed=0)}, {"y": noise(2, 3, seed=1)}]
    broken = expected[1]["y"].copy()
    broken[1, 2] = damage
    assert worst_noise_to_signal(expected, [expected[0], {"y": broken}]) == math.inf
    assert worst_noise_to_signal(expected, expected) == 0
    assert worst_noise_to_signal(expected, [{"y": 1.1 * each["y"]} for each in expected]) == pytest.approx(
        0.01, rel=1e-4
    )
    masked = [{"y": np.append(each["y"], -np.inf)} for each in expected]
    assert worst_noise_to_signal(masked, [{"y": 1.1 * each["y"]} for each in masked]) == pytest.approx(0.01, rel=1e-4)


def test_the_noise_of_a_map_of_classes_is_the_pixels_that_change() -> None:
    expected = [{"classes": np.array([[[0, 7, 7, 7]]], np.uint8)}]
    one_far, three_near = ([{"classes": np.array([[row]], np.uint8)}] for row in ([200, 7, 7, 7], [0, 8, 8, 8]))
    assert worst_noise_to_signal(expected, one_far) == 0.25
    assert worst_noise_to_signal(expected, three_near) == 0.75


def test_integers_that_are_not_called_classes_are_values_as_in_parity() -> None:
    expected, near = np.full((1, 4, 8), 100, np.int64), np.full((1, 4, 8), 101, np.int64)
    assert worst_noise_to_signal([{"counts": expected}], [{"counts": near}]) == pytest.approx(1e-4)
    reference = Reference(kind="photos", inputs={"x": noise(1, 4)}, outputs={"counts": expected.astype(np.float32)})
    (result,) = compare("int8", lambda _: {"counts": near}, [reference], precision="int8").results
    assert not result.is_class_map and result.snr_db == pytest.approx(40)


def test_the_noise_is_that_of_the_worst_output() -> None:
    expected = [{"boxes": np.full((1, 4), 500, np.float32), "scores": np.full((1, 4), 0.1, np.float32)}]
    wrong_scores = [{**expected[0], "scores": np.full((1, 4), 0.2, np.float32)}]
    assert worst_noise_to_signal(expected, wrong_scores) == pytest.approx(1)


def test_layers_that_change_the_most_pixels_go_back_to_float_and_the_cheaper_of_equal_ones() -> None:
    graph = checked_graph(
        f"""(float[batch, 2, {WIDTH}] x) => (int64[batch, 2, 1] classes) {{
            a = MatMul (x, w0)
            b = MatMul (a, w1)
            c = MatMul (b, w2)
            classes = ArgMax <axis = -1> (c)
        }}""",
        w0=noise(WIDTH, 2 * WIDTH, seed=0),
        w1=noise(2 * WIDTH, WIDTH, seed=1),
        w2=noise(WIDTH, WIDTH // 2, seed=2),
    )
    feeds = [{"x": noise(1, 2, WIDTH, seed=3)}]
    _, plan = quantize_with_fallback(
        graph,
        collect_ranges(graph, feeds, load=load),
        scheme=INT8_SCHEMES["ort"],
        acceptance_check=accepts_at_most(2),
        measurement=NoiseMeasurement(feeds=feeds, load=load, noise={"net/a": 0.1, "net/b": 0.1, "net/c": 0.1}),
    )
    (reverted,) = plan.reverted
    assert reverted.name == "net/c"
    assert reverted.reason == "costs accuracy: 10.0% of pixels change class with this layer alone in int8"


def test_a_layer_with_a_wrong_range_goes_back_to_float() -> None:
    """Its range says that the input is always 0."""
    graph = matmul_chain()
    feeds = [{"x": IMAGE}]
    ranges = {**collect_ranges(graph, feeds, load=load)}
    ranges["h2"] = collect_ranges(graph, [{"x": 0 * IMAGE}], load=load)["h2"]
    _, plan = quantize_with_fallback(
        graph,
        ranges,
        scheme=INT8_SCHEMES["trt"],
        acceptance_check=requires_snr(graph, 20),
        measurement=NoiseMeasurement(feeds=feeds, load=load),
    )
    assert [node.name for node in plan.reverted] == [NAMES[3]]


@pytest.mark.parametrize("scheme", INT8_SCHEMES.values(), ids=INT8_SCHEMES)
@pytest.mark.parametrize("operator", ["Reciprocal", "Log"])
def test_a_layer_with_infinite_input_or_output_stays_in_float(operator: str, scheme: Int8Scheme) -> None:
    """It once ended in a traceback, or in an infinite scale in the graph."""
    graph = checked_graph(
        f"""(float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {{
              h0 = MatMul (x, w0)  zero = Relu (h0)  infinite = {operator} (zero)
              h1 = MatMul (infinite, w1)  small = Relu (h1)  near = Clip (small, low, high)
              sum = Add (near, h0)  y = MatMul (sum, w2)
            }}""",
        **{f"w{index}": np.abs(noise(WIDTH, WIDTH, seed=index)) * (-1) ** (index == 1) for index in range(3)},
        low=np.asarray(0, np.float32),
        high=np.asarray(1, np.float32),
    )
    quantized, plan = quantize_checked(graph, requires_snr(graph, 10), scheme=scheme)
    assert [node.name for node in plan.kept] == ["net/h1"]
    assert "not finite" in plan.kept[0].reason and plan.reverted == ()
    assert np.isfinite(output(quantized, IMAGE)).all()
