"""Heads of several projections of the same tokens as one projection."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.merge_heads import merge_heads
from tests.helpers.graphs import HEADER, assert_same, noise, parse, run

ARRAYS = {
    "w": noise(8, 4),
    "v": noise(8, 6, seed=2),
    "u": noise(8, 9, seed=3),
    "b": noise(4, seed=4),
    "two": np.asarray([0, 3, 2, 2], np.int64),
    "three": np.asarray([0, 3, 3, 2], np.int64),
    "four": np.asarray([-1, 3, 4, 2], np.int64),
    "of_three": np.asarray([0, 3, 3, 3], np.int64),
    "mixed": np.asarray([1, 3, 4, 2], np.int64),
    "swapped": np.asarray([3, 2, 2, 2], np.int64),
    "swapped_three": np.asarray([3, 2, 3, 2], np.int64),
    "many": np.asarray([0, 20, 2, 2], np.int64),
    "many_more": np.asarray([0, 20, 3, 2], np.int64),
}
HEADS = "Transpose <perm = [0, 2, 1, 3]>"
Q = f"m = MatMul (x, w) a = Add (m, b) r = Reshape (a, two) q = {HEADS} (r)"
K = f"n = MatMul (x, v) s = Reshape (n, three) k = {HEADS} (s)"
TOKENS = f"t = Reshape (x, four) z = {HEADS} (t)"


def graph(body: str, *, shape: str = "N, 3, 8", outputs: str = "q, k") -> OnnxGraph:
    return parse(f"{HEADER} g (float[{shape}] x) => ({outputs}) {{ {body} }}", **ARRAYS)


def behind(*values: str) -> str:
    """Read values by nodes whose outputs are those of the graph."""
    return " ".join(f"{value}_read = Sigmoid ({value})" for value in values)


@pytest.mark.parametrize(
    ("body", "values", "heads"),
    [
        pytest.param(Q + K, ("q", "k"), [2, 3], id="two projections"),
        pytest.param(Q + TOKENS, ("q", "z"), [2, 4], id="a projection and the tokens"),
        pytest.param(TOKENS + K + Q, ("z", "k", "q"), [4, 3, 2], id="the tokens first"),
    ],
)
def test_they_become_one_product_one_transposition_and_a_split(
    body: str, values: tuple[str, ...], heads: list[int]
) -> None:
    before = graph(body + behind(*values), outputs=", ".join(f"{value}_read" for value in values))
    after = before.apply("merge_heads", merge_heads)
    ours = {"MatMul": 1, "Add": 1, "Reshape": 1, "Transpose": 1, "Split": 1}
    assert after.operators == {**ours, "Sigmoid": len(values)}
    (split,) = (node for node in after.model.graph if node.op_type == "Split")
    assert [part.shape[1] for part in split.outputs if part.shape is not None] == heads
    assert_same(before, after)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        pytest.param(Q + "k = Relu (q)", "N, 3, 8", id="one projection"),
        pytest.param(TOKENS + f"j = Reshape (x, four) q = {HEADS} (j) k = Relu (z)", "N, 3, 8", id="no projection"),
        pytest.param("h = Relu (x)" + Q + K.replace("(x, v)", "(h, v)"), "N, 3, 8", id="of another value"),
        pytest.param(
            Q + f"n = MatMul (x, u) s = Reshape (n, of_three) k = {HEADS} (s)", "N, 3, 8", id="heads of another size"
        ),
        pytest.param(Q.replace("two", "many") + K.replace("three", "many_more"), "N, 20, 8", id="many tokens"),
        pytest.param(Q + K.replace("[0, 2, 1, 3]", "[0, 2, 3, 1]"), "N, 3, 8", id="another transposition"),
        pytest.param(
            Q.replace("two", "mixed") + K.replace("(x, v)", "(x, w)").replace("three", "mixed"),
            "2, 3, 8",
            id="heads of two images",
        ),
        pytest.param(
            Q.replace("two", "swapped") + K.replace("three", "swapped_three"), "2, 3, 8", id="tokens of other images"
        ),
    ],
)
def test_others_stay(body: str, shape: str) -> None:
    before = graph(body + behind("q", "k"), shape=shape, outputs="q_read, k_read")
    after = before.apply("merge_heads", merge_heads)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_a_split_with_another_reader_stays() -> None:
    before = graph(Q + K + behind("q", "k", "r"), outputs="q_read, k_read, r_read")
    after = before.apply("merge_heads", merge_heads)
    assert after.operators == before.operators


def test_heads_that_are_outputs_stay() -> None:
    before = graph(Q + K, outputs="q, k")
    after = before.apply("merge_heads", merge_heads)
    assert after.operators == before.operators


def test_heads_of_unprojected_tokens_are_exact() -> None:
    before = graph(Q + TOKENS + behind("q", "z"), outputs="q_read, z_read")
    want, got = run(before)["z_read"], run(before.apply("merge_heads", merge_heads))["z_read"]
    assert np.array_equal(want, got)
