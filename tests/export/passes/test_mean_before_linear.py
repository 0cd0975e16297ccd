"""Means over tokens and pixels before the layers that computed them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs
from edgevit.export.passes.fold_layer_scale import fold_layer_scale
from edgevit.export.passes.mean_before_linear import mean_before_linear
from edgevit.export.tensor_parts import MeanRow, channel_scales, mean_rows
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {
    "w": noise(8, 6),
    "v": noise(6, 6, seed=2),
    "t": noise(6, 8, seed=3),
    "b": noise(6, seed=4),
    "k": noise(6, 8, 1, 1, seed=5),
    "wide": noise(6, 8, 3, 3, seed=6),
    "row": noise(1, 1, 6, seed=7),
    "one": np.asarray([1]),
    "two": np.asarray([2]),
    "pixels": np.asarray([2, 3]),
    "rows_columns": np.asarray([1, 2]),
    "last": np.asarray([-1]),
    "first": np.asarray([0]),
    "end": np.asarray([2**31 - 1]),
}
TOKENS = "float[N, 35, 8] x, float[N, 35, 6] s"
MAP = "float[N, 8, 5, 7] x, float[N, 6, 5, 7] s"
LAYER = "m = MatMul (x, w) l = Add (m, b) "
ROW = 8 * 6  # multiply-adds


def rewritten(inputs: str, body: str) -> tuple[OnnxGraph, OnnxGraph]:
    before = parse(f"{HEADER} g ({inputs}) => (y) {{ {body} }}", **WEIGHTS)
    return before, before.apply("mean_before_linear", partial(mean_before_linear, min_saved_macs=1))


@pytest.mark.parametrize(
    ("inputs", "body", "rows"),
    [
        (TOKENS, LAYER + "y = ReduceMean <keepdims = 0> (l, one)", 1),
        (TOKENS, LAYER + "y = ReduceMean (l, one)", 1),
        (TOKENS, LAYER + "a = Add (s, l) y = ReduceMean <keepdims = 0> (a, one)", 1),
        (TOKENS, LAYER + "a = Add (l, s) c = Add (a, s) y = ReduceMean <keepdims = 0> (c, one)", 1),
        (TOKENS, LAYER + "a = Add (l, s) p = Slice (a, one, end, one) y = ReduceMean <keepdims = 0> (p, one)", 1),
        (TOKENS, LAYER + "r = Transpose <perm = [0, 2, 1]> (l) y = ReduceMean <keepdims = 0> (r, two)", 1),
        ("float[N, 5, 7, 8] x, float s", LAYER + "y = ReduceMean <keepdims = 0> (l, rows_columns)", 1),
        ("float[N, 5, 7, 8] x, float s", LAYER + "y = ReduceMean <keepdims = 0> (l, two)", 5),
        (MAP, "c = Conv (x, k, b) a = Add (c, s) y = ReduceMean <keepdims = 0> (a, pixels)", 1),
        (MAP, "c = Conv (x, k) y = GlobalAveragePool (c)", 1),
        (
            "float[N, 5, 7, 8] x, float[N, 6, 5, 7] s",
            LAYER + "p = Transpose <perm = [0, 3, 1, 2]> (l) a = Add (p, s) y = GlobalAveragePool (a)",
            1,
        ),
    ],
)
def test_layers_have_the_rows_that_are_read(inputs: str, body: str, rows: int) -> None:
    before, after = rewritten(inputs, body)
    assert graph_macs(after) == rows * ROW < graph_macs(before)
    assert_same(before, after)


def test_the_rows_of_a_mean_are_noted() -> None:
    _, after = rewritten(TOKENS, LAYER + "p = Slice (l, one, end, one) y = ReduceMean <keepdims = 0> (p, one)")
    assert list(mean_rows(after).values()) == [MeanRow(((1, 1, 35),))]


def test_the_scale_of_a_layer_is_noted_of_its_mean() -> None:
    before = parse(
        f"{HEADER} g ({TOKENS}) => (y) {{ {LAYER} m2 = Mul (l, b) y = ReduceMean <keepdims = 0> (m2, one) }}", **WEIGHTS
    )
    folded = before.apply("fold_layer_scale", partial(fold_layer_scale, smallest=0))
    after = folded.apply("mean_before_linear", partial(mean_before_linear, min_saved_macs=1))
    (scale,) = channel_scales(after).values()
    assert np.array_equal(scale.factors, WEIGHTS["b"])
    assert set(channel_scales(after)) == set(mean_rows(after))
    assert_same(before, after)


def test_layers_behind_one_another_have_one_row() -> None:
    before, after = rewritten(TOKENS, "m = MatMul (x, w) n = MatMul (m, v) y = ReduceMean <keepdims = 0> (n, one)")
    assert graph_macs(after) == ROW + 6 * 6
    assert_same(before, after)


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (TOKENS, LAYER + "g = Gelu (l) y = ReduceMean <keepdims = 0> (g, one)"),  # not linear
        (TOKENS, LAYER + "a = ReduceMean (l, one) y = Add (a, l)"),  # the rows are read, too
        (TOKENS, LAYER + "y = ReduceMean <keepdims = 0> (l, last)"),  # over channels
        (TOKENS, LAYER + "y = ReduceMean <keepdims = 0> (l, first)"),  # over images
        (TOKENS, LAYER + "p = Slice (l, one, end, last) y = ReduceMean (p, one)"),  # of channels
        (TOKENS, LAYER + "y = ReduceMax <keepdims = 0> (l, one)"),
        (TOKENS, "m = MatMul (s, x) y = ReduceMean <keepdims = 0> (m, one)"),  # no constant weights
        (MAP, "c = Conv <pads = [1, 1, 1, 1]> (x, wide) y = GlobalAveragePool (c)"),  # of neighbors
        (MAP, "c = Conv (x, k) y = ReduceMean <keepdims = 0> (c, two)"),  # over rows of pixels only
        (TOKENS, LAYER + "a = Add (l, row) y = ReduceMean <keepdims = 0> (a, one)"),  # not of the same shape
        (
            "float[2, 35, 8] x, float s",
            LAYER + "r = Transpose <perm = [1, 0, 2]> (l) y = ReduceMean <keepdims = 0> (r, one)",  # over images
        ),
    ],
)
def test_other_means_stay(inputs: str, body: str) -> None:
    inputs = inputs.replace("float[N, 35, 6] s", "float[N, 8, 35] s") if "MatMul (s" in body else inputs
    before, after = rewritten(inputs, body)
    assert after.operators == before.operators
    assert graph_macs(after) == graph_macs(before)
    assert_same(before, after, exact=True)


def test_few_multiply_adds_are_not_worth_another_mean() -> None:
    before = parse(f"{HEADER} g ({TOKENS}) => (y) {{ {LAYER} y = ReduceMean <keepdims = 0> (l, one) }}", **WEIGHTS)
    assert before.apply("mean_before_linear", mean_before_linear).operators == before.operators
