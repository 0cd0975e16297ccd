"""Parallel small networks as one."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes.merge_branches import merge_branches
from edgevit.export.passes.merge_linear import merge_linear
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ARRAYS = {
    "w": noise(8, 4),
    "v": noise(8, 4, seed=2),
    "b": noise(4, seed=3),
    "w2": noise(4, 5, seed=4),
    "v2": noise(4, 6, seed=5),
    "b2": noise(5, seed=6),
    "w2t": noise(5, 4, seed=7),
    "wide": noise(8, 40, seed=8),
    "wide2": noise(40, 3, seed=9),
    "narrow": noise(8, 3, seed=10),
    "narrow2": noise(3, 40, seed=11),
    "row": noise(4, seed=12),
}
GEMMS = "m = Gemm (x, w, b) p = Relu (m) a = Gemm (p, w2, b2) n = Gemm (x, v) q = Relu (n) c = Gemm (q, v2)"
REVERSED = "m = Gemm (x, w) n = Gemm (x, v) q = Relu (n) c = Gemm (q, v2) p = Relu (m) a = Gemm (p, w2, b2)"
MATMULS = (
    "m = MatMul (x, w) i = Add (m, b) p = Gelu (i) o = MatMul (p, w2) a = Add (o, b2)"
    " n = MatMul (x, v) q = Gelu (n) c = MatMul (q, v2)"
)
END = " d = HardSigmoid (a) e = HardSigmoid (c) y = Concat <axis = -1> (e, d)"


def graph(body: str, shape: str) -> OnnxGraph:
    parsed = parse(f"{HEADER} g (float[{shape}] x) => (y) {{ {body} }}", **ARRAYS)
    return parsed.apply("merge_linear", merge_linear)


@pytest.mark.parametrize(
    ("body", "shape", "layers"),
    [
        pytest.param(GEMMS + END, "N, 8", {"Gemm": 2, "Relu": 1}, id="gemms"),
        pytest.param(
            GEMMS.replace("(p, w2, b2)", "<transB = 1> (p, w2t)") + END,
            "N, 8",
            {"Gemm": 2, "Relu": 1},
            id="one weight transposed",
        ),
        pytest.param(REVERSED + END, "N, 8", {"Gemm": 2, "Relu": 1}, id="the second part is read first"),
        pytest.param(MATMULS + END, "N, 3, 8", {"MatMul": 2, "Add": 2, "Gelu": 1}, id="matmuls"),
    ],
)
def test_the_split_moves_behind_all_layers(body: str, shape: str, layers: dict[str, int]) -> None:
    before = graph(body, shape)
    after = before.apply("merge_branches", merge_branches)
    assert after.operators == {**layers, "HardSigmoid": 1, "Split": 1, "Concat": 1}
    assert_same(before, after)


def test_the_second_layer_is_block_diagonal() -> None:
    after = graph(GEMMS + END, "N, 8").apply("merge_branches", merge_branches)
    arrays = [constant(value) for value in after.model.graph.initializers.values()]
    weight = max((array for array in arrays if array is not None), key=np.size)
    assert weight.shape == (8, 11)
    assert not weight[:4, 5:].any() and not weight[4:, :5].any()


@pytest.mark.parametrize(
    ("body", "moved"),
    [
        pytest.param(GEMMS.replace("q = Relu", "q = Tanh") + END, False, id="other operators"),
        pytest.param(
            "m = Gemm (x, w) p = LeakyRelu <alpha = 0.1> (m) n = Gemm (x, v) q = LeakyRelu <alpha = 0.2> (n)"
            " y = Concat <axis = -1> (q, p)",
            False,
            id="other attributes",
        ),
        pytest.param(GEMMS + " r = Neg (m)" + END.replace("(e, d)", "(e, d, r)"), False, id="a part with two readers"),
        pytest.param(
            "m = Gemm (x, wide) p = Relu (m) a = Gemm (p, wide2)"
            " n = Gemm (x, narrow) q = Relu (n) c = Gemm (q, narrow2)" + END,
            True,
            id="too many zeros",
        ),
        pytest.param(
            "m = Gemm (x, w) p = Relu (m) a = Add (p, row) n = Gemm (x, v) q = Relu (n) c = Add (q, row)" + END,
            True,
            id="not a layer",
        ),
    ],
)
def test_it_stops_before_what_differs(body: str, *, moved: bool) -> None:
    """`moved`: behind the Relu, but not further."""
    before = graph(body, "N, 8")
    after = before.apply("merge_branches", merge_branches)
    assert after.operators["Gemm"] == before.operators["Gemm"]
    assert after.operators["Relu"] == (1 if moved else before.operators["Relu"])
    assert_same(before, after, within=1e-6)


def test_a_split_of_many_rows_stays() -> None:
    body = "s, t = Split <axis = -1> (x, sizes) p = Relu (s) q = Relu (t) y = Concat <axis = -1> (q, p)"
    before = parse(f"{HEADER} g (float[N, 64, 8] x) => (y) {{ {body} }}", sizes=np.asarray([3, 5], np.int64))
    assert before.apply("merge_branches", merge_branches).operators == before.operators


def test_operators_of_another_domain_stay() -> None:
    header = HEADER.replace("]", ', "com.microsoft": 1]')
    body = "s, t = Split <axis = -1> (x, sizes) p = com.microsoft.Gelu (s) q = com.microsoft.Gelu (t)"
    before = parse(f"{header} g (float[N, 8] x) => (p, q) {{ {body} }}", sizes=np.asarray([3, 5], np.int64))
    after = before.apply("merge_branches", merge_branches)
    assert [node.domain for node in after.model.graph if node.op_type == "Gelu"] == ["com.microsoft"] * 2
