"""A layer of heads behind the norm of a sum is computed from the terms of the sum."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.linear_before_norm import linear_before_norm
from edgevit.export.passes.merge_linear import merge_linear
from edgevit.types import Array, Precision
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ARRAYS = {
    "u": noise(8, 5, seed=1),
    "p": noise(6, 8, seed=2),
    "p_bias": noise(8, seed=3),
    "g": noise(8, seed=4),
    "t": noise(8, seed=5),
    "w": noise(8, 8, seed=6),
    "w_wide": noise(8, 12, seed=7),
    "b": noise(8, seed=8),
    "constant_tokens": noise(1, 3, 8, seed=9),
    "offset": noise(seed=10),
    "offsets": noise(1, 3, 1, seed=11),
    "two": np.asarray([-1, 3, 2, 4], np.int64),
    "three": np.asarray([-1, 3, 3, 4], np.int64),
    "four": np.asarray([-1, 3, 4, 2], np.int64),
}
TO_HEADS = "Transpose <perm = [0, 2, 1, 3]>"
OTHER = "ru = MatMul (r, u) other = Relu (ru)"  # another layer of the tokens
PROJECTION = "ap = MatMul (a, p) projected = Add (ap, p_bias)"
NORM = "s = Add (r, projected) y = LayerNormalization <axis = -1, epsilon = 0.01> (s, g, t)"
QUERIES = f"yw = MatMul (y, w) q = Add (yw, b) q4 = Reshape (q, two) qh = {TO_HEADS} (q4) queries = Relu (qh)"
UNBIASED = f"yw = MatMul (y, w) q4 = Reshape (yw, two) qh = {TO_HEADS} (q4) queries = Relu (qh)"
KEYS = f"y4 = Reshape (y, two) yh = {TO_HEADS} (y4) keys = Relu (yh)"
LATE = "late = Relu (r) other = MatMul (late, u)"
OUTPUTS = ("queries", "keys", "other", "second", "more", "projected")


def graph(*parts: str, tokens: int = 3, outputs: tuple[str, ...] = OUTPUTS[:-1], **arrays: Array) -> OnnxGraph:
    body = " ".join(parts)
    computed = ", ".join(name for name in outputs if f"{name} =" in body)
    inputs = f"float[N, {tokens}, 8] r, float[N, {tokens}, 6] a"
    return parse(f"{HEADER} g ({inputs}) => ({computed}) {{ {body} }}", **{**ARRAYS, **arrays})


def moved(before: OnnxGraph) -> OnnxGraph:
    return before.apply("linear_before_norm", linear_before_norm)


def readers_of_the_norm(after: OnnxGraph) -> list[str]:
    norms = (node for node in after.model.graph if node.op_type == "LayerNormalization")
    return [use.node.op_type for norm in norms for use in norm.outputs[0].uses()]


def test_the_heads_of_the_norm_and_of_its_layer_are_split_together() -> None:
    before = graph(OTHER, PROJECTION, NORM, QUERIES, KEYS)
    after = moved(before)
    assert readers_of_the_norm(after) == ["Concat"]
    assert (after.operators["Reshape"], after.operators["Transpose"], after.operators["Split"]) == (1, 1, 1)
    assert_same(before, after)


def test_its_products_are_merged_with_those_of_the_terms() -> None:
    before = graph(OTHER, PROJECTION, NORM, QUERIES, KEYS)
    after = moved(before).apply("merge_linear", merge_linear)
    assert after.operators["MatMul"] == 2
    assert_same(before, after)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((OTHER, PROJECTION, NORM, QUERIES), id="heads of the layer alone"),
        pytest.param(
            (OTHER, PROJECTION, NORM.replace("(r, projected)", "(projected, r)"), QUERIES, KEYS),
            id="the projection first",
        ),
        pytest.param((OTHER, PROJECTION, NORM.replace("g, t)", "g)"), QUERIES, KEYS), id="a norm without bias"),
        pytest.param((OTHER, "projected = MatMul (a, p)", NORM, QUERIES), id="a projection without bias"),
        pytest.param((OTHER, PROJECTION, NORM, UNBIASED, KEYS), id="a layer without bias"),
        pytest.param((PROJECTION, NORM.replace("(r,", "(constant_tokens,"), QUERIES, KEYS), id="constant tokens"),
        pytest.param(
            (OTHER, PROJECTION, NORM, UNBIASED.replace("w)", "w_wide)").replace("two", "three"), KEYS),
            id="more heads than those of the norm",
        ),
        pytest.param((OTHER, PROJECTION, NORM, QUERIES, KEYS.replace("two", "four")), id="heads of another size"),
        pytest.param(
            (PROJECTION, LATE, NORM.replace("(r,", "(late,"), QUERIES, KEYS), id="tokens computed after the projection"
        ),
    ],
)
def test_variants_are_moved_too(parts: tuple[str, ...]) -> None:
    before = graph(*parts)
    after = moved(before)
    assert "MatMul" not in readers_of_the_norm(after)
    assert_same(before, after)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((PROJECTION, NORM, QUERIES, KEYS), id="tokens without another layer"),
        pytest.param((OTHER, "projected = Relu (r)", NORM, QUERIES, KEYS), id="no projection"),
        pytest.param((OTHER, PROJECTION, NORM.replace("Add", "Mul"), QUERIES, KEYS), id="a product instead of a sum"),
        pytest.param((PROJECTION, NORM.replace("(r,", "(offset,"), QUERIES, KEYS), id="a number for all channels"),
        pytest.param((PROJECTION, NORM.replace("(r,", "(offsets,"), QUERIES, KEYS), id="a number for each token"),
        pytest.param((OTHER, PROJECTION, NORM, QUERIES, "second = MatMul (y, u)"), id="two layers read the norm"),
        pytest.param((OTHER, PROJECTION, NORM, "yw = MatMul (y, w) queries = Add (yw, b)"), id="no heads"),
        pytest.param((OTHER, PROJECTION, NORM, QUERIES, "more = Relu (q)"), id="another reader of the layer"),
    ],
)
def test_others_stay(parts: tuple[str, ...]) -> None:
    before = graph(*parts)
    after = moved(before)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_a_projection_that_is_an_output_stays() -> None:
    before = graph(OTHER, PROJECTION, NORM, QUERIES, KEYS, outputs=OUTPUTS)
    assert moved(before).operators == before.operators


def test_layers_of_many_tokens_stay() -> None:
    sizes = np.asarray([-1, 20, 2, 4], np.int64)
    before = graph(OTHER, PROJECTION, NORM, QUERIES, KEYS, tokens=20, two=sizes)
    assert moved(before).operators == before.operators


def test_the_mean_of_a_token_drops_out_of_the_product() -> None:
    """Means of 1000 times the deviation would cost three decimals in products with weights that are not centered."""
    before = graph(OTHER, PROJECTION, NORM, QUERIES, KEYS, p_bias=ARRAYS["p_bias"] + np.float32(1000))
    assert_same(before, moved(before), within=1e-3)


@pytest.mark.parametrize(("precision", "moves"), [("fp32", True), ("fp16", True), ("int8", False)])
def test_it_runs_for_tensorrt_except_in_int8(precision: Precision, moves: bool) -> None:
    after = passes.specialize(graph(OTHER, PROJECTION, NORM, QUERIES, KEYS), "trt", precision=precision)
    assert (readers_of_the_norm(after) == ["Concat"]) is moves
