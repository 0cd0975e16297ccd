"""Constant factors in the weights of linear layers."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.fold_scale import fold_scale
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {
    "w": noise(8, 8),
    "b": noise(8, seed=2),
    "v": noise(8, 5, seed=3),
    "c": np.asarray(0.3, np.float32),
    "one": np.asarray([0.3], np.float32),
    "each": noise(8, seed=4),
    "heads": np.asarray([0, 3, 2, 4]),
    "zero": np.asarray(0),
}


def graph(body: str) -> str:
    return f"{HEADER} g (float[N, 3, 8] x, float[N, 3, 8] other) => (y) {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul (x, w) a = Add (m, b) s = Mul (a, c) y = Relu (s)",
        "m = MatMul (x, w) a = Add (b, m) s = Mul (one, a) y = Relu (s)",
        "m = MatMul (x, w) r = Reshape (m, heads) t = Transpose <perm = [0, 2, 1, 3]> (r) s = Div (t, c) y = Relu (s)",
        "f = Gather <axis = 1> (x, zero) g = Gemm <transB = 1> (f, w, b) s = Mul (g, c) y = Relu (s)",
        "h = HardSigmoid (x) s = Mul (h, c) p = Mul (other, s) m = MatMul (p, v) y = Relu (m)",
        "h = HardSigmoid (x) s = Mul (h, c) f = Gather <axis = 1> (s, zero) y = Gemm (f, w, b)",
    ],
)
def test_a_linear_layer_absorbs_the_factor(body: str) -> None:
    before = parse(graph(body), **WEIGHTS)
    after = before.apply("fold_scale", fold_scale)
    assert after.operators["Div"] == 0 and after.operators["Mul"] == body.count("other, s")
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul (x, w) s = Mul (m, c) t = Relu (m) y = Add (s, t)",  # the layer has another reader
        "m = MatMul (x, w) s = Mul (m, each) y = Relu (s)",  # not one number
        "m = MatMul (x, w) r = Relu (m) s = Mul (r, c) y = Relu (s)",  # not only rearranged
        "m = MatMul (x, w) s = Div (c, m) y = Relu (s)",  # not linear
        "h = HardSigmoid (x) s = Mul (h, c) p = Add (other, s) y = MatMul (p, v)",  # the sum has another term
    ],
)
def test_other_products_stay(body: str) -> None:
    before = parse(graph(body), **WEIGHTS)
    after = before.apply("fold_scale", fold_scale)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
