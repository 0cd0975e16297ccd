"""Attention of narrow heads among few tokens, transposed."""

from __future__ import annotations

import pytest

from edgevit.export.passes.transpose_narrow_attention import transpose_narrow_attention
from tests.helpers.graphs import HEADER, assert_same, noise, parse

CONSTANTS = {"bias": noise(2, 9, 9), "rows": noise(9, 1, seed=2), "keys": noise(9, seed=3)}


def graph(body: str, *, queries: str = "9, 16", keys: str = "16, 9", values: str = "9, 16") -> str:
    inputs = f"float[N, 2, {queries}] q, float[N, 2, {keys}] k, float[N, 2, {values}] v"
    return f"{HEADER} g ({inputs}) => (y) {{ {body} }}"


ATTENTION = "s = MatMul (q, k) w = Softmax <axis = -1> (s) y = MatMul (w, v)"


@pytest.mark.parametrize(
    "body",
    [
        ATTENTION,
        "s = MatMul (q, k) b = Add (s, bias) w = Softmax <axis = 3> (b) y = MatMul (w, v)",
        "s = MatMul (q, k) b = Add (rows, s) w = Softmax <axis = -1> (b) y = MatMul (w, v)",
    ],
)
def test_the_softmax_is_over_rows(body: str) -> None:
    before = parse(graph(body), **CONSTANTS)
    after = before.apply("transpose_narrow_attention", transpose_narrow_attention)
    assert after.operators == before.operators | {"Transpose": 4}
    (softmax,) = (node for node in after.model.graph if node.op_type == "Softmax")
    assert softmax.attributes.get_int("axis", 0) == -2
    assert_same(before, after)


def test_other_numbers_of_queries_and_channels() -> None:
    before = parse(graph(ATTENTION, queries="5, 31", keys="31, 64", values="64, 8"))
    after = before.apply("transpose_narrow_attention", transpose_narrow_attention)
    assert after.operators["Transpose"] == 4
    assert_same(before, after)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(graph(ATTENTION, queries="9, 32", keys="32, 9"), id="wide heads"),
        pytest.param(graph(ATTENTION, values="9, 32"), id="wide values"),
        pytest.param(graph(ATTENTION, queries="65, 16"), id="many queries"),
        pytest.param(graph(ATTENTION, keys="16, 65", values="65, 16"), id="many keys"),
        pytest.param(graph(ATTENTION, queries="M, 16"), id="unknown number of queries"),
        pytest.param(
            f"{HEADER} g (float[9, 16] q, float[16, 9] k, float[9, 16] v) => (y) {{ {ATTENTION} }}",
            id="no axis of heads",
        ),
        pytest.param(
            graph("s = MatMul (q, k) w = Softmax <axis = -2> (s) y = MatMul (w, v)", keys="16, 9"),
            id="softmax over rows",
        ),
        pytest.param(
            graph("s = MatMul (q, k) b = Add (s, keys) w = Softmax <axis = -1> (b) y = MatMul (w, v)"),
            id="bias of keys",
        ),
        pytest.param(
            graph("s = MatMul (q, k) b = Add (s, s) w = Softmax <axis = -1> (b) y = MatMul (w, v)"), id="added scores"
        ),
        pytest.param(
            graph("s = MatMul (q, k) w = Softmax <axis = -1> (s) p = MatMul (w, v) r = MatMul (s, v) y = Add (p, r)"),
            id="scores read twice",
        ),
        pytest.param(
            graph("s = MatMul (q, k) w = Softmax <axis = -1> (s) p = MatMul (w, v) r = MatMul (w, q) y = Add (p, r)"),
            id="weights read twice",
        ),
        pytest.param(
            graph("s = MatMul (q, k) w = Softmax <axis = -1> (s) y = MatMul (k, w)"), id="weights on the right"
        ),
        pytest.param(graph("s = Relu (q) w = Softmax <axis = -1> (s) y = MatMul (w, k)"), id="no product of queries"),
    ],
)
def test_other_attention_stays(text: str) -> None:
    before = parse(text, **CONSTANTS)
    after = before.apply("transpose_narrow_attention", transpose_narrow_attention)
    assert after.operators == before.operators
    if "M, 16" not in text:
        assert_same(before, after, exact=True)
