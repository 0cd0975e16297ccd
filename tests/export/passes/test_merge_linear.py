"""Linear layers that read the same value as one."""

from __future__ import annotations

import pytest

from edgevit.export.passes.merge_linear import merge_linear
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {
    "w": noise(8, 5),
    "v": noise(8, 7, seed=2),
    "u": noise(8, 5, seed=3),
    "b": noise(5, seed=4),
    "c": noise(7, seed=5),
    "wt": noise(5, 8, seed=6),
}


def graph(body: str, shape: str) -> str:
    return f"{HEADER} g (float[{shape}] x) => (y) {{ {body} }}"


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("N, 3, 8", "m = MatMul (x, w) a = Add (m, b) n = MatMul (x, v) k = Add (c, n) y = Concat <axis = -1> (k, a)"),
        ("N, 3, 8", "m = MatMul (x, w) n = MatMul (x, v) k = Add (c, n) y = Concat <axis = -1> (k, m)"),
        ("N, 8", "m = Gemm (x, w, b) n = Gemm (x, v) k = Gemm <transB = 1> (x, wt) y = Concat <axis = -1> (k, n, m)"),
    ],
)
def test_they_become_one_product_and_a_split(shape: str, body: str) -> None:
    before = parse(graph(body, shape), **WEIGHTS)
    after = before.apply("merge_linear", merge_linear)
    assert after.operators["MatMul"] + after.operators["Gemm"] == 1 and after.operators["Split"] == 1
    assert_same(before, after)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("N, 64, 8", "m = MatMul (x, w) n = MatMul (x, v) y = Concat <axis = -1> (n, m)"),  # many rows
        ("N, R, 8", "m = MatMul (x, w) n = MatMul (x, v) y = Concat <axis = -1> (n, m)"),  # any number of rows
        ("N, 3, 8", "m = MatMul (x, w) r = Relu (x) n = MatMul (r, v) y = Concat <axis = -1> (n, m)"),  # another value
        ("N, 8", "m = Gemm <alpha = 2.0> (x, w) n = Gemm (x, v) y = Concat <axis = -1> (n, m)"),  # scaled
    ],
)
def test_others_stay(shape: str, body: str) -> None:
    before = parse(graph(body, shape), **WEIGHTS)
    after = before.apply("merge_linear", merge_linear)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
