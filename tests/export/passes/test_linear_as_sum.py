"""Small layers behind a gated attention as multiplications and a sum."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes import specialize
from edgevit.export.passes.linear_as_sum import linear_as_sum
from edgevit.types import Precision
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ATTENTION = "s = MatMul (q, k) w = Softmax <axis = -1> (s) a = MatMul (w, v)"
HEADS = "t = Transpose <perm = [0, 2, 1, 3]> (a) x = Reshape (t, shape)"
GATE = "gated = Mul (x, gate)"
LAYER = "p = MatMul (gated, weight) y = Add (p, bias)"


def graph(*body: str, tokens: int = 3, columns: int = 5, flat: bool = False) -> OnnxGraph:
    shape = f"[N, {'' if flat else f'{tokens}, '}"
    inputs = f"float[N, 2, {tokens}, 4] q, float[N, 2, 4, 9] k, float[N, 2, 9, 4] v, float{shape}8] gate"
    return parse(
        f"{HEADER} g ({inputs}) => (float{shape}{columns}] y) {{ {' '.join(body)} }}",
        weight=noise(8, columns),
        rows=noise(columns, 8),
        bias=noise(columns, seed=1),
        shape=np.asarray([0, 8] if flat else [0, 0, 8], np.int64),
    )


def as_sum(before: OnnxGraph) -> OnnxGraph:
    return before.apply("linear_as_sum", linear_as_sum)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(graph(ATTENTION, HEADS, GATE, LAYER), id="with a bias"),
        pytest.param(graph(ATTENTION, HEADS, GATE, "y = MatMul (gated, weight)"), id="without"),
        pytest.param(graph(ATTENTION, HEADS, "gated = Mul (gate, x)", LAYER), id="the gate first"),
        pytest.param(graph(ATTENTION, HEADS, GATE, LAYER, tokens=16), id="16 tokens"),
        pytest.param(
            graph(ATTENTION, HEADS, "m = Mul (x, gate)", "gated = Reshape (m, shape)", LAYER),
            id="moved behind the gate",
        ),
    ],
)
def test_a_layer_behind_a_gated_attention_becomes_a_sum(before: OnnxGraph) -> None:
    after = as_sum(before)
    assert after.operators["MatMul"] == before.operators["MatMul"] - 1
    assert after.operators["ReduceSum"] == 1
    assert_same(before, after)


@pytest.mark.parametrize("layer", ["Gemm (gated, weight, bias)", "Gemm <transB = 1> (gated, rows, bias)"])
def test_a_gemm_keeps_its_bias(layer: str) -> None:
    before = graph(ATTENTION, HEADS, GATE, f"y = {layer}", tokens=1, flat=True)
    after = as_sum(before)
    assert (after.operators["Gemm"], after.operators["ReduceSum"], after.operators["Add"]) == (0, 1, 1)
    assert_same(before, after)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(graph(ATTENTION, HEADS, "y = MatMul (x, weight)"), id="no gate"),
        pytest.param(graph(ATTENTION, HEADS, "gated = Add (x, gate)", LAYER), id="a sum instead of a gate"),
        pytest.param(graph("y = MatMul (gate, weight)"), id="no attention"),
        pytest.param(graph("gated = Mul (gate, gate)", LAYER), id="a gate of other tokens"),
        pytest.param(
            graph(ATTENTION, HEADS, GATE, "p = MatMul (gated, weight)", "z = MatMul (gated, weight)", "y = Add (p, z)"),
            id="two readers of the gated tokens",
        ),
        pytest.param(graph(ATTENTION, HEADS, GATE, LAYER, tokens=17), id="too many tokens"),
        pytest.param(graph(ATTENTION, HEADS, GATE, LAYER, columns=2**14 + 1), id="too many weights"),
        pytest.param(
            graph("a = MatMul (q, k)", "b = MatMul (a, v)", HEADS.replace("(a)", "(b)"), GATE, LAYER),
            id="a product without softmax",
        ),
    ],
)
def test_other_layers_stay(before: OnnxGraph) -> None:
    after = as_sum(before)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("target", "precision", "sums"),
    [("trt", "fp16", 1), ("trt-rtx", "fp32", 1), ("trt", "int8", 0), ("ort", "fp32", 0), ("onnx", "fp32", 0)],
)
def test_tensorrt_gets_it_in_floats(target: str, precision: Precision, sums: int) -> None:
    before = graph(ATTENTION, HEADS, GATE, LAYER)
    assert specialize(before, target, precision=precision).operators["ReduceSum"] == sums
