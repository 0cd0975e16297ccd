"""Factors of channels in the weights of the layer before them."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export import passes
from edgevit.export.passes.fold_layer_scale import fold_layer_scale
from edgevit.export.tensor_parts import channel_scales
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {
    "w": noise(4, 6),
    "t": noise(6, 4),
    "b": noise(6, seed=2),
    "k": noise(6, 4, 1, 1, seed=3),
    "d": noise(4, 1, 3, 3, seed=4),
    "c": noise(6, seed=5, offset=3),
    "row": noise(1, 1, 6, seed=5, offset=3),
    "pixel": noise(6, 1, 1, seed=6, offset=3),
    "map": noise(1, 6, 1, 1, seed=6, offset=3),
    "four": noise(4, 1, 1, seed=7, offset=3),
    "rows": noise(5, 1, seed=8, offset=3),
    "wide": noise(1, 1, 1, 6, seed=9, offset=3),
    "one": noise(1, seed=10, offset=3),
    "tiny": np.full(6, 2.0**-11, np.float32),
    "zero": np.zeros(6, np.float32),
    "huge": np.full(6, 17, np.float32),
}
TOKENS, MAP, ROWS = "float[N, 5, 4] x", "float[N, 4, 5, 7] x", "float[N, 4] x"


def graph(inputs: str, body: str) -> str:
    return f"{HEADER} g ({inputs}) => (y) {{ {body} }}"


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (TOKENS, "m = MatMul (x, w) y = Mul (m, c)"),
        (TOKENS, "m = MatMul (x, w) a = Add (m, b) y = Mul (row, a)"),
        (ROWS, "m = Gemm <transB = 1> (x, t, b) y = Mul (m, c)"),
        (MAP, "m = Conv (x, k) y = Mul (m, pixel)"),
        (MAP, "m = Conv (x, k, b) y = Mul (map, m)"),
        (MAP, "m = Conv <group = 4, pads = [1, 1, 1, 1]> (x, d) y = Mul (m, four)"),
    ],
)
def test_the_weights_take_the_factors(inputs: str, body: str) -> None:
    before = parse(graph(inputs, body), **WEIGHTS)
    after = before.apply("fold_layer_scale", fold_layer_scale)
    assert after.operators["Mul"] == 0
    assert sum(after.operators.values()) == sum(before.operators.values()) - 1
    assert_same(before, after)
    assert passes.optimize(before).operators["Mul"] == 0


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (TOKENS, "m = MatMul (x, w) s = Mul (m, c) y = Add (s, m)"),  # read by others too
        (TOKENS, "m = MatMul (x, w) y = Mul (m, rows)"),  # of tokens
        (TOKENS, "m = MatMul (x, w) y = Mul (m, wide)"),  # an axis more
        (TOKENS, "m = MatMul (x, w) y = Mul (m, one)"),  # of all channels: fold_scale
        (TOKENS, "m = MatMul (x, w) s = Mul (m, m) y = Mul (s, c)"),  # not of the layer
        ("float[N, 5, 4] x, float[6] z", "m = MatMul (x, w) y = Mul (m, z)"),  # no constants
        ("float[N, 4, 5, 6] x", "m = Conv (x, k) y = Mul (m, c)"),  # of columns
        (TOKENS, "m = MatMul (x, w) y = Mul (m, tiny)"),
        (TOKENS, "m = MatMul (x, w) y = Mul (m, zero)"),
        (TOKENS, "m = MatMul (x, w) y = Mul (m, huge)"),
    ],
)
def test_other_factors_stay(inputs: str, body: str) -> None:
    before = parse(graph(inputs, body), **WEIGHTS)
    after = before.apply("fold_layer_scale", fold_layer_scale)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(("factors", "left"), [("tiny", 0), ("huge", 0), ("zero", 1)])
@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_all_factors_but_zero_are_folded_for_processors(fmt: str, factors: str, left: int) -> None:
    before = parse(graph(TOKENS, f"m = MatMul (x, w) y = Mul (m, {factors})"), **WEIGHTS)
    after = passes.specialize(passes.optimize(before), fmt)
    assert after.operators["Mul"] == left
    assert_same(before, after)


def test_the_factors_are_noted() -> None:
    before = parse(graph(TOKENS, "m = MatMul (x, w) s = Mul (m, c) y = Mul (s, row)"), **WEIGHTS)
    after = before.apply("fold_layer_scale", fold_layer_scale)
    (scale,) = channel_scales(after).values()
    assert scale.axis == -1
    assert np.allclose(scale.factors, WEIGHTS["c"] * WEIGHTS["row"].ravel())
