"""The affine maps around a HardSigmoid in the linear layer before it."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.hard_sigmoid_to_clip import hard_sigmoid_to_clip
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {
    "w": noise(12, 8),
    "b": noise(12, seed=2),
    "two": np.asarray(2, np.float32),
    "minus": np.asarray(-2, np.float32),
    "one": np.asarray(1, np.float32),
    "each": noise(12, seed=4),
    "axes": np.asarray([2, 3]),
    "axis": np.asarray([1]),
}
LAYER = "g = Gemm <transB = 1> (x, w, b) h = HardSigmoid <alpha = 0.25, beta = 0.4> (g)"
SLOPES = f"{LAYER} u = Unsqueeze (h, axes) p, q = Split <axis = 1, num_outputs = 2> (u) p2 = Mul (two, p)"


def graph(body: str) -> str:
    return f"{HEADER} g (float[N, 8] x) => (y) {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "clips"),
    [
        (f"{LAYER} y = Mul (h, two)", 1),
        (f"{LAYER} m = Div (h, two) y = Sub (m, one)", 1),
        (f"{SLOPES} q2 = Mul (q, two) q3 = Sub (q2, one) y = Max (p2, q3)", 2),
        (f"{SLOPES} y = Max (p2, q)", 2),
    ],
)
def test_the_layer_absorbs_the_maps(body: str, clips: int) -> None:
    before = parse(graph(body), **WEIGHTS)
    after = before.apply("hard_sigmoid_to_clip", hard_sigmoid_to_clip)
    assert after.operators["Clip"] == clips
    assert not {"HardSigmoid", "Mul", "Sub", "Div"} & set(after.operators)
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        f"{LAYER} y = Relu (h)",  # no map
        f"{LAYER} y = Mul (h, minus)",  # would exchange the limits
        f"{LAYER} y = Sub (one, h)",  # likewise
        f"{LAYER} y = Mul (h, each)",  # a number per channel
        f"{LAYER} s = Mul (h, two) y = Add (s, g)",  # the layer has another reader
        "h = HardSigmoid (x) y = Mul (h, two)",  # no layer
    ],
)
def test_others_stay(body: str) -> None:
    before = parse(graph(body), **WEIGHTS)
    after = before.apply("hard_sigmoid_to_clip", hard_sigmoid_to_clip)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
