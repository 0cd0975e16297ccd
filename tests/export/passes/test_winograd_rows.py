"""3x3 convolutions with two thirds of the multiplications."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit import cpu
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs, graph_work
from edgevit.export.passes import specialize
from edgevit.export.passes.winograd_rows import winograd_rows
from edgevit.types import Precision
from tests.helpers.graphs import BATCH, HEADER, assert_same, noise, parse, run

CONV = "Conv <pads = [1, 1, 1, 1]>"
MAP = "float[N, 64, 32, 36]"
PARTS = {"Conv": 6, "Add": 4, "Sub": 2}  # of a convolution: two of the six take neighboring rows


def graph(body: str, *, inputs: str = f"{MAP} x", outputs: str = f"{MAP} y", width: int = 3) -> OnnxGraph:
    return parse(
        f"{HEADER} g ({inputs}) => ({outputs}) {{ {body} }}",
        w=noise(64, 64, 3, width, scale=0.04),
        v=noise(64, 64, 3, 3, scale=0.04, seed=2),
        wide=noise(80, 64, 3, 3, scale=0.04, seed=3),
        row=noise(64, 64, 1, 3),
        w1=noise(64, 64, 3),
        w3=noise(64, 64, 3, 3, 3),
        halves=noise(64, 32, 3, 3),
        few=noise(64, 16, 3, 3),
        narrow=noise(32, 64, 3, 3),
        b=noise(64, seed=4),
        gate=noise(64, 1, 1, seed=5),
        zero=np.asarray(0, np.float32),
        six=np.asarray(6, np.float32),
    )


def with_halves(before: OnnxGraph) -> OnnxGraph:
    return before.apply("winograd_rows", winograd_rows)


def counts(after: OnnxGraph, *names: str) -> tuple[int, ...]:
    return tuple(after.operators[name] for name in names)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(graph(f"y = {CONV} (x, w, b)"), id="with a bias"),
        pytest.param(graph(f"y = {CONV} (x, w)"), id="without"),
        pytest.param(graph("y = Conv <pads = [1, 0, 1, 0]> (x, w)", width=1), id="3x1"),
        pytest.param(graph("y = Conv <pads = [1, 1, 1, 3]> (x, w)", width=5), id="3x5"),
        pytest.param(
            graph("y = Conv <pads = [1, 0, 1, 0]> (x, w, b)", outputs="float[N, 64, 32, 34] y"), id="narrower"
        ),
        pytest.param(graph(f"y = {CONV} (x, wide)", outputs="float[N, 80, 32, 36] y"), id="more channels"),
        pytest.param(
            graph(f"y = {CONV} (x, w, b)", inputs="float[N, 64, 4, 60] x", outputs="float[N, 64, 4, 60] y"),
            id="4 rows",
        ),
    ],
)
def test_a_convolution_becomes_products_of_rows(before: OnnxGraph) -> None:
    after = with_halves(before)
    assert after.operators == {**PARTS, "Reshape": 2, "Split": 1, "Concat": 1}
    assert_same(before, after)


def test_two_thirds_of_the_multiplications_are_left_of_the_same_work() -> None:
    image = MAP.replace("N", "1")
    before = graph(f"y = {CONV} (x, w, b)", inputs=f"{image} x", outputs=f"{image} y")
    after = with_halves(before)
    of_neighbors = 2 * 2 * 64 * 16 * 36  # twice two weights for each element of a half
    assert graph_macs(after) == graph_macs(before) * 2 // 3 + of_neighbors
    assert graph_work(after, batch=1).macs == graph_work(before, batch=1).macs


@pytest.mark.parametrize(
    ("between", "operators"),
    [
        pytest.param("a = Relu (c)", {"Relu": 2}, id="an activation"),
        pytest.param("a = Clip (c, zero, six)", {"Clip": 2}, id="with numbers"),
        pytest.param("a = Mul (c, gate)", {"Mul": 2}, id="a number for each channel"),
        pytest.param("d = Add (c, x) a = Relu (d)", {"Relu": 2}, id="a residual sum"),
        pytest.param("s = Sigmoid (c) a = Mul (c, s)", {"Sigmoid": 2, "Mul": 2}, id="a sum of two ways"),
    ],
)
def test_maps_between_convolutions_are_neither_joined_nor_split(between: str, operators: dict[str, int]) -> None:
    before = graph(f"c = {CONV} (x, w, b) {between} y = {CONV} (a, v)")
    after = with_halves(before)
    assert counts(after, "Reshape", "Split", "Concat") == (2, 1, 1)
    assert counts(after, *operators) == tuple(operators.values())
    assert_same(before, after)


def test_a_whole_map_is_split_for_a_sum_in_front_of_a_convolution() -> None:
    before = graph(f"c = {CONV} (x, w) d = Add (c, z) y = {CONV} (d, v)", inputs=f"{MAP} x, {MAP} z")
    after = with_halves(before)
    assert counts(after, "Split", "Concat") == (2, 1)
    assert_same(before, after)


def test_a_whole_map_is_not_split_for_a_sum_alone() -> None:
    before = graph(f"c = {CONV} (x, w) y = Add (c, z)", inputs=f"{MAP} x, {MAP} z")
    after = with_halves(before)
    assert counts(after, "Split", "Concat") == (1, 1)
    assert_same(before, after)


def test_all_readers_share_a_joined_map() -> None:
    others = "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) q = Transpose <perm = [0, 1, 3, 2]> (a)"
    body = f"c = {CONV} (x, w) a = Relu (c) {others} y = {CONV} (a, v)"
    before = graph(body, outputs=f"{MAP} y, float[N, 64, 16, 18] p, float[N, 64, 36, 32] q, {MAP} a")
    after = with_halves(before)
    assert counts(after, "Split", "Concat") == (1, 2)
    assert_same(before, after)


def test_a_joined_map_keeps_its_name() -> None:
    """An explanation of a failed parity finds the tensors of a PyTorch module by their names."""
    after = with_halves(graph(f"c = {CONV} (x, w) a = Relu (c) y = Softmax (a)"))
    (reader,) = (node for node in after.model.graph if node.op_type == "Softmax")
    assert reader.inputs[0] is not None and reader.inputs[0].name == "a"


def test_a_map_that_a_branch_reads_is_joined() -> None:
    branches = "then_branch = t () => (t_y) { t_y = Relu (c) }, else_branch = e () => (e_y) { e_y = Neg (c) }"
    before = graph(f"c = {CONV} (x, w) s = ReduceMax <keepdims = 0> (x) p = Greater (s, zero) y = If (p) <{branches}>")
    after = with_halves(before)
    assert counts(after, "Conv", "Concat") == (6, 1)
    assert_same(before, after)


def test_the_error_is_that_of_a_convolution() -> None:
    before = graph(f"y = {CONV} (x, w)")
    x, w = np.random.default_rng(0).standard_normal((BATCH, 64, 32, 36)), noise(64, 64, 3, 3, scale=0.04)
    images = torch.from_numpy(x.astype(np.float32)).double()
    exact = torch.conv2d(images, torch.from_numpy(w).double(), padding=1).numpy()
    plain, rows = (np.abs(run(each)["y"] - exact).max() for each in (before, with_halves(before)))
    assert rows < 2 * plain


OTHERS = {
    "an odd number of rows": graph(
        f"y = {CONV} (x, w)", inputs="float[N, 64, 31, 36] x", outputs="float[N, 64, 31, 36] y"
    ),
    "two rows": graph(f"y = {CONV} (x, w)", inputs="float[N, 64, 2, 400] x", outputs="float[N, 64, 2, 400] y"),
    "an unknown number of rows": graph(
        f"y = {CONV} (x, w)", inputs="float[N, 64, H, 36] x", outputs="float[N, 64, H, 36] y"
    ),
    "steps of two": graph("y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)", outputs="float[N, 64, 16, 18] y"),
    "holes": graph("y = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w)"),
    "holes in a row": graph("y = Conv <pads = [1, 2, 1, 2], dilations = [1, 2]> (x, w)"),
    "no padding": graph("y = Conv (x, w)", outputs="float[N, 64, 30, 34] y"),
    "padding on one side": graph("y = Conv <pads = [2, 1, 0, 1]> (x, w)"),
    "automatic padding": graph('y = Conv <auto_pad = "SAME_UPPER"> (x, w)'),
    "one row of weights": graph("y = Conv <pads = [1, 1, 1, 1]> (x, row)", outputs="float[N, 64, 34, 36] y"),
    "groups": graph("y = Conv <pads = [1, 1, 1, 1], group = 2> (x, halves)"),
    "few channels": graph(f"y = {CONV} (x, few)", inputs="float[N, 16, 32, 36] x", outputs="float[N, 64, 32, 36] y"),
    "few outputs": graph(f"y = {CONV} (x, narrow)", outputs="float[N, 32, 32, 36] y"),
    "one dimension": graph(
        "y = Conv <pads = [1, 1]> (x, w1)", inputs="float[N, 64, 768] x", outputs="float[N, 64, 768] y"
    ),
    "three dimensions": graph(
        "y = Conv <pads = [1, 1, 1, 1, 1, 1]> (x, w3)",
        inputs="float[N, 64, 4, 4, 6] x",
        outputs="float[N, 64, 4, 4, 6] y",
    ),
    "computed weights": graph(f"k = Relu (w) l = Mul (k, gain) y = {CONV} (x, l)", inputs=f"{MAP} x, float[1] gain"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_stay(name: str) -> None:
    after = with_halves(OTHERS[name])
    assert after.operators == OTHERS[name].operators
    assert_same(OTHERS[name], after, exact=True)


@pytest.mark.parametrize(
    ("channels", "rows", "products"),
    [
        pytest.param(64, 12, 1, id="few multiplications"),
        pytest.param(64, 126, 1, id="few channels of a map that no cache holds"),
        pytest.param(64, 124, 6, id="few channels of a map in the cache"),
        pytest.param(128, 90, 6, id="many channels of a map that no cache holds"),
    ],
)
def test_a_convolution_stays_where_its_sums_of_rows_would_take_longer(channels: int, rows: int, products: int) -> None:
    image = f"float[N, {channels}, {rows}, {rows}]"
    before = parse(f"{HEADER} g ({image} x) => ({image} y) {{ y = {CONV} (x, w) }}", w=noise(channels, channels, 3, 3))
    assert with_halves(before).operators["Conv"] == products


def test_convolutions_in_float64_stay() -> None:
    double = f"{HEADER} g (double[N, 64, 32, 36] x) => (double[N, 64, 32, 36] y) {{ y = {CONV} (x, w) }}"
    assert with_halves(parse(double, w=noise(64, 64, 3, 3).astype(np.float64))).operators == {"Conv": 1}


@pytest.mark.parametrize("between", ["Concat <axis = 1> (c, c)", "Softmax <axis = 3> (c)", "Transpose (c)"])
def test_operators_that_are_not_elementwise_read_the_whole_map(between: str) -> None:
    before = graph(f"c = {CONV} (x, w) y = {between}", outputs="float[N, C, D, E] y")
    after = with_halves(before)
    assert counts(after, "Reshape", "Conv") == (2, 6)
    assert_same(before, after)


@pytest.mark.parametrize("shape", ["N, 64, 32, 36", "N, 64, 1, 36", "N, 64, 32, 1", "32, 36", "36"])
def test_sums_with_other_shapes_are_right(shape: str) -> None:
    before = graph(f"c = {CONV} (x, w) d = Add (c, z) y = {CONV} (d, v)", inputs=f"{MAP} x, float[{shape}] z")
    assert_same(before, with_halves(before))


def test_a_sum_with_a_value_of_unknown_shape_reads_the_whole_map() -> None:
    before = graph(f"c = {CONV} (x, w) d = Add (c, z) y = {CONV} (d, v)", inputs=f"{MAP} x, {MAP} z")
    before.model.graph.inputs[1].shape = None
    assert counts(with_halves(before), "Concat", "Split") == (2, 2)


@pytest.mark.parametrize(
    ("target", "flags", "precision", "products"),
    [
        ("ort", "avx2 avx512f", "fp32", 6),
        ("openvino", "avx2 avx512f", "fp32", 6),
        ("openvino", "avx2 avx512f avx512_bf16", "bf16", 1),
        ("ort", "avx2 avx512f avx512_vnni", "int8", 1),
        ("ort", "avx2", "fp32", 1),
        ("onnx", "avx2 avx512f", "fp32", 1),
        ("trt", "avx2 avx512f", "fp32", 1),
    ],
)
def test_processors_with_avx512_get_it_in_fp32(
    target: str, flags: str, precision: Precision, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    after = specialize(graph(f"y = {CONV} (x, w, b)"), target, precision=precision)
    assert after.operators["Conv"] == products
