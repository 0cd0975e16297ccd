"""Linear layers behind a Reshape as Gemm of a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.flatten_linear import flatten_linear
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ARRAYS = {
    "w": noise(8, 5),
    "b": noise(5, seed=2),
    "tokens": np.asarray([0, 3, 8], np.int64),
    "any": np.asarray([0, -1, 8], np.int64),
}
LAYER = "r = Reshape (x, tokens) m = MatMul (r, w) l = Add (b, m) "
MERGED_HEADS = "t = Transpose <perm = [0, 2, 1, 3]> (x) r = Reshape (t, tokens) m = MatMul (r, w) l = Add (b, m) "


def graph(body: str, shape: str = "N, 3, 2, 4") -> OnnxGraph:
    return parse(f"{HEADER} g (float[{shape}] x, float[N, 3, 5] u, float[N, 3, 5] v) => (y) {{ {body} }}", **ARRAYS)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        pytest.param(LAYER + "y = Relu (l)", "N, 3, 2, 4", id="dynamic batch"),
        pytest.param(LAYER + "y = Relu (l)", "3, 3, 2, 4", id="static batch"),
        pytest.param(MERGED_HEADS + "s = Add (u, l) y = Add (s, v)", "N, 2, 3, 4", id="merged heads, three terms"),
    ],
)
def test_it_becomes_a_gemm_of_rows(body: str, shape: str) -> None:
    before = graph(body, shape)
    after = before.apply("flatten_linear", flatten_linear)
    assert after.operators["Gemm"] == 1 and not after.operators["MatMul"]
    (gemm,) = (node for node in after.model.graph if node.op_type == "Gemm")
    assert gemm.inputs[0] is not None and len(gemm.inputs[0].shape or ()) == 2
    assert_same(before, after)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        pytest.param("r = Relu (x) m = MatMul (r, w) l = Add (b, m) y = Relu (l)", "N, 3, 8", id="no Reshape"),
        pytest.param("r = Reshape (x, tokens) y = MatMul (r, w)", "N, 3, 2, 4", id="no bias"),
        pytest.param(LAYER.replace("tokens", "any") + "y = Relu (l)", "N, M, 8", id="unknown number of rows"),
        pytest.param(MERGED_HEADS + "y = Add (u, l)", "N, 2, 3, 4", id="merged heads, two terms"),
        pytest.param(
            MERGED_HEADS + "s = Add (u, l) z = Add (s, v) y = Add (z, s)", "N, 2, 3, 4", id="the sum has two readers"
        ),
    ],
)
def test_others_stay(body: str, shape: str) -> None:
    before = graph(body, shape)
    after = before.apply("flatten_linear", flatten_linear)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
