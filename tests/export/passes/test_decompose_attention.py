"""Attention to few keys written out as elementwise operators and a sum."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes import specialize
from edgevit.export.passes.decompose_attention import decompose_attention
from edgevit.types import Precision
from tests.helpers.graphs import HEADER, assert_same, noise, parse, run

PIXELS = "float[N, 2, 4, 9] q"  # pixels last
SCORES = "s = MatMul (k, q)"
SOFTMAX = "w = Softmax <axis = -2> (s)"
RESULT = "y = MatMul (v, w)"


def attention(
    *body: str, keys: int | str = 3, outputs: str = "float[N, 2, 5, 9] y", queries: str = PIXELS
) -> OnnxGraph:
    inputs = f"float[N, 2, {keys}, 4] k, {queries}, float[N, 2, 5, {keys}] v"
    text = " ".join(body or (SCORES, SOFTMAX, RESULT))
    return parse(f"{HEADER} g ({inputs}) => ({outputs}) {{ {text} }}", kept=np.ones(3, np.bool_))


def written_out(before: OnnxGraph) -> OnnxGraph:
    return before.apply("decompose_attention", decompose_attention)


@pytest.mark.parametrize("keys", [2, 3, 6])
def test_each_key_has_its_exponential_and_its_share(keys: int) -> None:
    before = attention(keys=keys)
    after = written_out(before)
    assert after.operators == {
        "Unsqueeze": 2, "Mul": 1 + keys, "ReduceSum": 1, "Split": 2, "Max": 1, "Sub": keys, "Exp": keys,
        "Add": 2 * (keys - 1), "Div": 1,
    }  # fmt: skip
    assert_same(before, after)


def test_an_axis_counted_from_the_front_is_the_same() -> None:
    before = attention(SCORES, "w = Softmax <axis = 2> (s)", RESULT)
    assert written_out(before).operators["Softmax"] == 0
    assert_same(before, written_out(before))


def test_large_scores_do_not_overflow() -> None:
    before = attention("c = Constant <value_float = 1e30> ()", "k2 = Mul (k, c)", "s = MatMul (k2, q)", SOFTMAX, RESULT)
    after = written_out(before)
    assert np.isfinite(run(after)["y"]).all()
    assert_same(before, after)


@pytest.mark.parametrize("name", ["k", "q", "v"])
def test_a_constant_is_repeated_for_all_images(name: str) -> None:
    shapes = {"k": (1, 2, 3, 4), "q": (1, 2, 4, 9), "v": (1, 2, 5, 3)}
    inputs = ", ".join(f"float[N, {', '.join(map(str, shape[1:]))}] {x}" for x, shape in shapes.items() if x != name)
    before = parse(
        f"{HEADER} g ({inputs}) => (float[N, 2, 5, 9] y) {{ {SCORES} {SOFTMAX} {RESULT} }}",
        **{name: noise(*shapes[name])},
    )
    after = written_out(before)
    assert after.operators["Softmax"] == 0
    assert_same(before, after)


@pytest.mark.parametrize(("perm", "transposed"), [("0, 1, 3, 2", True), ("0, 2, 3, 1", False)])
def test_transposed_values_are_split_in_front_of_the_transposition(perm: str, transposed: bool) -> None:
    tokens = "float[N, 2, 3, 5] tokens" if transposed else "float[N, 3, 2, 5] tokens"
    before = parse(
        f"""{HEADER} g (float[N, 2, 3, 4] k, {PIXELS}, {tokens}) => (float[N, 2, 5, 9] y) {{
            v = Transpose <perm = [{perm}]> (tokens) {SCORES} {SOFTMAX} {RESULT}
        }}"""
    )
    after = written_out(before)
    assert after.operators["Transpose"] == (3 if transposed else 1)
    assert after.operators["Softmax"] == 0
    assert_same(before, after)


def test_other_readers_of_the_scores_get_the_sum() -> None:
    """The spatial ReLU of Mobile-Former's detectors reads the scores, too."""
    before = attention(SCORES, SOFTMAX, RESULT, "r = Relu (s)", outputs="float[N, 2, 5, 9] y, float[N, 2, 3, 9] r")
    after = written_out(before)
    assert after.operators["MatMul"] == after.operators["Softmax"] == 0
    assert_same(before, after)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(attention(keys=7), id="too many keys"),
        pytest.param(attention(keys=1), id="one key"),
        pytest.param(attention(keys="M"), id="an unknown number of keys"),
        pytest.param(attention(SCORES, "w = Softmax <axis = -1> (s)", RESULT), id="over the pixels"),
        pytest.param(attention(SCORES, "h = Mul (s, s)", "w = Softmax <axis = -2> (h)", RESULT), id="no plain scores"),
        pytest.param(
            attention(SCORES, SOFTMAX, RESULT, outputs="float[N, 2, 5, 9] y, float[N, 2, 3, 9] s"),
            id="the scores are an output",
        ),
        pytest.param(
            attention(SCORES, SOFTMAX, RESULT, outputs="float[N, 2, 5, 9] y, float[N, 2, 3, 9] w"),
            id="the weights are an output",
        ),
        pytest.param(
            attention(
                SCORES,
                SOFTMAX,
                "y = MatMul (w, z)",
                queries=f"{PIXELS}, float[N, 2, 9, 5] z",
                outputs="float[N, 2, 3, 5] y",
            ),
            id="the weights are the left factor",
        ),
        pytest.param(attention(SCORES, SOFTMAX, RESULT, queries="float[2, 4, 9] q"), id="another rank"),
        pytest.param(
            parse(
                f"""{HEADER} g (float[4] k, float[4, 9] q, float[5, 9] v) => (float[5] y) {{
                    s = MatMul (k, q) w = Softmax <axis = -1> (s) y = MatMul (v, w)
                }}"""
            ),
            id="vectors",
        ),
        pytest.param(
            parse(
                f"""{HEADER} g (float[N, 3, 4] k, float[N, 4, 3] q, float[N, 3, 5] v) => (float[N, 3, 5] y) {{
                    {SCORES} {SOFTMAX} y = MatMul (w, v)
                }}"""
            ),
            id="as many pixels as keys, the weights are the left factor",
        ),
        pytest.param(
            attention(SCORES, SOFTMAX, "u = Compress <axis = 3> (v, kept) y = MatMul (u, w)"),
            id="an unknown number of values",
        ),
        pytest.param(
            attention(SCORES, SOFTMAX, "y = Relu (w)", outputs="float[N, 2, 3, 9] y"), id="no product with the values"
        ),
    ],
)
def test_other_attention_stays(before: OnnxGraph) -> None:
    after = written_out(before)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("target", "precision", "softmax"),
    [("trt", "fp16", 0), ("trt-rtx", "fp32", 0), ("trt", "int8", 1), ("ort", "fp32", 1), ("onnx", "fp32", 1)],
)
def test_tensorrt_gets_it_in_floats(target: str, precision: Precision, softmax: int) -> None:
    assert specialize(attention(), target, precision=precision).operators["Softmax"] == softmax


@pytest.mark.parametrize(
    ("precision", "keys", "softmax"), [("fp16", 6, 0), ("fp16", 7, 1), ("fp32", 8, 0), ("fp32", 9, 1)]
)
def test_more_keys_are_written_out_where_no_attention_is_fused(precision: Precision, keys: int, softmax: int) -> None:
    assert specialize(attention(keys=keys), "trt", precision=precision).operators["Softmax"] == softmax
