"""The layer of one token as a layer of all tokens."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.linear_before_gather import linear_before_gather
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ARRAYS = {
    "w": noise(8, 4),
    "wt": noise(4, 8, seed=2),
    "b": noise(4, seed=3),
    "v": noise(8, 5, seed=4),
    "one": np.asarray(1, np.int64),
    "two": np.asarray([0, 2], np.int64),
}
ALL = " k = MatMul (x, v)"


def graph(body: str, shape: str = "N, 3, 8") -> OnnxGraph:
    return parse(f"{HEADER} g (float[{shape}] x) => (y, k) {{ {body} }}", **ARRAYS)


@pytest.mark.parametrize("layer", ["Gemm (t, w, b)", "Gemm <transB = 1> (t, wt, b)", "MatMul (t, w)"])
def test_the_token_is_picked_from_the_output(layer: str) -> None:
    before = graph(f"t = Gather <axis = 1> (x, one) y = {layer}" + ALL)
    after = before.apply("linear_before_gather", linear_before_gather)
    assert after.operators == {"MatMul": 2, "Add": 1, "Gather": 1}
    (gather,) = (node for node in after.model.graph if node.op_type == "Gather")
    assert gather.outputs[0].is_graph_output()
    assert_same(before, after)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        pytest.param("t = Gather <axis = 1> (x, one) y = Gemm (t, w) k = Relu (x)", "N, 3, 8", id="no other layer"),
        pytest.param("t = Gather <axis = 1> (x, one) y = Gemm (t, w)" + ALL, "N, 40, 8", id="many tokens"),
        pytest.param("t = Gather <axis = 1> (x, two) y = MatMul (t, w)" + ALL, "N, 3, 8", id="two tokens"),
        pytest.param("t = Gather <axis = 0> (x, one) y = MatMul (t, w)" + ALL, "3, 3, 8", id="an image"),
    ],
)
def test_others_stay(body: str, shape: str) -> None:
    before = graph(body, shape)
    after = before.apply("linear_before_gather", linear_before_gather)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
