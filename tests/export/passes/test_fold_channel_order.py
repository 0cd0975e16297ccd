"""The order of channels in the weights of the norm and the linear layer that read them."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.fold_channel_order import fold_channel_order
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ORDER = np.asarray([3, 0, 7, 1, 6, 2, 5, 4])
WEIGHTS = {
    "w": noise(8, 5),
    "v": noise(8, 8, seed=2),
    "t": noise(5, 8, seed=3),
    "b": noise(5, seed=4),
    "scale": noise(8, seed=5, offset=1),
    "bias": noise(8, seed=6),
    "row": noise(1, 8, seed=7),
    "order": ORDER,
    "backward": ORDER - 8,
    "twice": np.asarray([3, 0, 7, 1, 6, 2, 5, 5]),
    "fewer": np.asarray([3, 0, 7, 1, 6, 2, 5]),
    "matrix": ORDER.reshape(1, 8),
    "w7": noise(7, 5, seed=8),
    "tokens": np.asarray([2, 0, 1]),
}


def graph(body: str) -> str:
    return f"{HEADER} g (float[N, 3, 8] x) => (y) {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "p = Gather <axis = 2> (x, order) y = MatMul (p, w)",
        "p = Gather <axis = -1> (x, backward) m = MatMul (p, w) y = Add (m, b)",
        "p = Gather <axis = 2> (x, order) n = LayerNormalization (p, scale, bias) m = MatMul (n, w) y = Add (b, m)",
        "p = Gather <axis = 2> (x, order) n = LayerNormalization <axis = 2> (p, scale) y = MatMul (n, w)",
        "r = ReduceMean <keepdims = 0> (x, one) p = Gather <axis = 1> (r, order) y = Gemm <transB = 1> (p, t, b)",
    ],
)
def test_the_weights_take_the_order(body: str) -> None:
    before = parse(graph(body), **WEIGHTS, one=np.asarray([1]))
    after = before.apply("fold_channel_order", fold_channel_order)
    assert after.operators["Gather"] == 0
    assert sum(after.operators.values()) == sum(before.operators.values()) - 1
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "p = Gather <axis = 2> (x, order) m = MatMul (p, v) y = Add (m, p)",  # two readers
        "p = Gather <axis = 2> (x, twice) y = MatMul (p, w)",  # an entry twice, another never
        "p = Gather <axis = 2> (x, fewer) y = MatMul (p, w7)",  # one entry left out
        "p = Gather <axis = 1> (x, tokens) y = MatMul (p, w)",  # the order of the tokens
        "p = Gather <axis = 2> (x, matrix) y = MatMul (p, w)",  # another rank
        "p = Gather <axis = 2> (x, order) g = Gelu (p) y = MatMul (g, w)",  # not read by a norm or a layer
        "p = Gather <axis = 2> (x, order) q = Transpose <perm = [0, 2, 1]> (p) y = MatMul (x, q)",  # not by weights
        "p = Gather <axis = 2> (x, order) n = LayerNormalization <axis = 1> (p, scale, bias) y = MatMul (n, w)",
        "p = Gather <axis = 2> (x, order) n = LayerNormalization (p, row, bias) y = MatMul (n, w)",  # of another shape
        "p = Gather <axis = 2> (x, order) n = LayerNormalization (p, scale, bias) m = MatMul (n, v) y = Add (m, n)",
        # its statistics are read
        "p = Gather <axis = 2> (x, order) n, m = LayerNormalization (p, scale, bias) r = MatMul (n, w) y = Add (r, m)",
    ],
)
def test_other_orders_stay(body: str) -> None:
    before = parse(graph(body), **WEIGHTS)
    after = before.apply("fold_channel_order", fold_channel_order)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
