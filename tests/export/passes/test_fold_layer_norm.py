"""The scale and bias of norms in the linear layers behind them."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes.fold_layer_norm import fold_layer_norm
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {
    "scale": noise(8, seed=5, offset=1),
    "bias": noise(8, seed=6),
    "ones": np.ones(8, np.float32),
    "zeros": np.zeros(8, np.float32),
    "w": noise(8, 5),
    "b": noise(5, seed=2),
    "t": noise(5, 8, seed=3),
    "w16": noise(16, 5, seed=4),
    "w4": noise(4, 5, seed=7),
    "w6": noise(6, 5, seed=8),
    "windows": np.asarray([-1, 4, 8]),
    "flat": np.asarray([-1, 2, 8]),
    "every": np.asarray([-1, 8]),
    "long": np.asarray([0, 3, 16]),
    "short": np.asarray([0, 12, 4]),
    "first": np.asarray(0),
}
NORM = "n = LayerNormalization (x, scale, bias) "


def graph(body: str, shape: str = "6, 8") -> str:
    return f"{HEADER} g (float[N, {shape}] x) => (y) {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        NORM + "m = MatMul (n, w) y = Add (m, b)",
        NORM + "y = MatMul (n, w)",
        NORM + "m = MatMul (n, w) y = Gelu (m)",
        "n = LayerNormalization <axis = 2> (x, scale) m = MatMul (n, w) y = Add (b, m)",
        NORM + "r = Reshape (n, flat) m = MatMul (r, w) y = Add (m, b)",
        NORM + "r = Transpose <perm = [1, 0, 2]> (n) m = MatMul (r, w) y = Add (m, b)",
    ],
)
def test_a_linear_layer_takes_the_scale_and_the_bias(body: str) -> None:
    before = parse(graph(body), **WEIGHTS)
    after = before.apply("fold_layer_norm", fold_layer_norm)
    assert np.all(scale(after) == 1)
    assert after.operators["Add"] == int("bias" in body or "Add" in body)
    assert_same(before, after)


def test_a_gemm_takes_them() -> None:
    body = NORM + "y = Gemm <transB = 1> (n, t, b)"
    before = parse(f"{HEADER} g (float[N, 8] x) => (y) {{ {body} }}", **WEIGHTS)
    after = before.apply("fold_layer_norm", fold_layer_norm)
    assert np.all(scale(after) == 1)
    assert_same(before, after)


def test_a_layer_of_windows_takes_them() -> None:
    """Pixels (4, 4) in windows of 2 x 2: two pixels of a row lie on the last axis in between."""
    swap = "t2 = Transpose <perm = [0, 2, 1, 3]> (r) s = Reshape (t2, windows)"
    before = parse(
        graph(NORM + f"r = Reshape (n, split) {swap} m = MatMul (s, w) y = Add (m, b)", "4, 4, 8"),
        **WEIGHTS,
        split=np.asarray([-1, 2, 2, 16]),
    )
    after = before.apply("fold_layer_norm", fold_layer_norm)
    assert np.all(scale(after) == 1)
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        NORM + "m = MatMul (n, v) y = Add (m, n)",  # something else reads the norm
        NORM + "g = Gelu (n) y = MatMul (g, w)",  # not linear
        NORM + "r = Reshape (n, short) y = MatMul (r, w4)",  # half the channels are a row
        NORM + "r = Reshape (n, long) y = MatMul (r, w16)",  # two tokens are a row
        NORM + "t2 = Transpose <perm = [0, 2, 1]> (n) y = MatMul (t2, w6)",  # over the tokens
        NORM + "r = Reshape (n, short) t2 = Transpose <perm = [1, 0, 2]> (r) s = Reshape (t2, every) y = MatMul (s, w)",
        NORM + "y = MatMul (n, other)",  # not by weights
        NORM + "t2 = Transpose <perm = [0, 2, 1]> (x) y = MatMul (t2, n)",  # on the right
        "n = LayerNormalization <axis = 1> (x, scale, bias) y = MatMul (n, w)",  # over the tokens too
        "n, mean = LayerNormalization (x, scale, bias) m = MatMul (n, w) y = Add (m, mean)",  # its statistics are read
        "n = LayerNormalization (x, ones, zeros) y = MatMul (n, w)",  # nothing to fold
        "n = LayerNormalization (x, computed, bias) y = MatMul (n, w)",
        "n = LayerNormalization (x, scale, computed) y = MatMul (n, w)",
    ],
)
def test_other_norms_stay(body: str) -> None:
    computed = "row = Gather <axis = 1> (x, first) computed = ReduceMean <keepdims = 0> (row, zeroth) " * (
        "computed" in body
    )
    other = "other = Transpose <perm = [0, 2, 1]> (x) " * ("other" in body)
    before = parse(graph(computed + other + body), **WEIGHTS, v=noise(8, 8, seed=9), zeroth=np.asarray([0]))
    after = before.apply("fold_layer_norm", fold_layer_norm)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_a_norm_stays_if_as_many_tokens_become_the_channels() -> None:
    body = NORM + "t2 = Transpose <perm = [0, 2, 1]> (n) y = MatMul (t2, w)"
    before = parse(graph(body, "8, 8"), **WEIGHTS)
    after = before.apply("fold_layer_norm", fold_layer_norm)
    assert_same(before, after, exact=True)


def scale(graph: OnnxGraph) -> Array:
    (norm,) = (node for node in graph.model.graph if node.op_type == "LayerNormalization")
    array = constant(norm.inputs[1])
    assert array is not None
    return array
