"""Applying the layer of keys and values to the few queries that read them."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs
from edgevit.export.passes.project_queries import project_queries
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, noise, parse

TOKENS, WIDTH, HEADS, DEPTH = 6, 4, 2, 3
OUTPUTS = 3 * HEADS * DEPTH

_LAYER = "p = MatMul (x, w) l = Add (p, b)"
_SPLIT = "s0, s1, s2 = Split <axis = -1> (l, thirds)"
_QUERY = "g = Gather <axis = 1> (s0, first) g4 = Reshape (g, heads1) q = Transpose <perm = [0, 2, 1, 3]> (g4)"
_KEYS = "k4 = Reshape (s1, heads) k = Transpose <perm = [0, 2, 3, 1]> (k4)"
_VALUES = "v4 = Reshape (s2, heads) v = Transpose <perm = [0, 2, 1, 3]> (v4)"
_ATTENTION = "c = MatMul (q, k) a = Softmax <axis = -1> (c) y = MatMul (a, v)"
DEIT = " ".join((_LAYER, _SPLIT, _QUERY, _KEYS, _VALUES, _ATTENTION))
# As timm does it: five axes, with queries, keys and values along one of them.
TIMM = f"""{_LAYER} l5 = Reshape (l, parts) t = Transpose <perm = [2, 0, 3, 1, 4]> (l5)
    q0 = Gather <axis = 0> (t, zero) k = Gather <axis = 0> (t, one) v = Gather <axis = 0> (t, two)
    q = Gather <axis = 2> (q0, first) u = Transpose <perm = [0, 1, 3, 2]> (k)
    c = MatMul (q, u) a = Softmax <axis = -1> (c) y = MatMul (a, v)"""
ONE_HEAD = f"""{_LAYER} {_SPLIT} q = Gather <axis = 1> (s0, first) k = Transpose <perm = [0, 2, 1]> (s1)
    c = MatMul (q, k) a = Softmax <axis = -1> (c) y = MatMul (a, s2)"""


def graph(body: str, shape: str = "N, 2, 1, 3", batch: str = "N", output: str = "y", **more: Array) -> OnnxGraph:
    constants: dict[str, Array] = dict(
        w=noise(WIDTH, OUTPUTS), b=noise(OUTPUTS, seed=1), thirds=np.asarray([OUTPUTS // 3] * 3),
        first=np.asarray([2]), heads=np.asarray([0, TOKENS, HEADS, DEPTH]), heads1=np.asarray([0, 1, HEADS, DEPTH]),
        parts=np.asarray([-1, TOKENS, 3, HEADS, DEPTH]), zero=np.asarray(0), one=np.asarray(1), two=np.asarray(2),
        bias=noise(1, 1, 1, TOKENS), **more,
    )  # fmt: skip
    text = f"{HEADER} g (float[{batch}, {TOKENS}, {WIDTH}] x) => (float[{shape}] {output}) {{{body}}}"
    return check(parse(text, **constants))


def project(before: OnnxGraph) -> OnnxGraph:
    return check(before.apply("project_queries", functools.partial(project_queries, min_saved_macs=1)))


def has_layer(graph: OnnxGraph) -> bool:
    """Whether a product computes all columns of all tokens."""
    shapes = [node.outputs[0].shape for node in graph.model.graph if node.op_type == "MatMul"]
    return any(shape is not None and list(shape)[1:] == [TOKENS, OUTPUTS] for shape in shapes)


@pytest.mark.parametrize("batch", ["N", "1", "3"])
@pytest.mark.parametrize("body", [DEIT, TIMM])
def test_no_row_is_computed_for_a_token_that_is_not_a_query(body: str, batch: str) -> None:
    before = graph(body, f"{batch}, {HEADS}, 1, {DEPTH}", batch)
    after = project(before)
    assert has_layer(before) and not has_layer(after)
    assert graph_macs(after) < graph_macs(before)
    assert_same(before, after)


def test_a_single_head_needs_no_reshape() -> None:
    before = graph(ONE_HEAD, "N, 1, 6")
    after = project(before)
    assert not has_layer(after)
    assert_same(before, after)


@pytest.mark.parametrize(
    "attention",
    [
        "c = MatMul (q, k) d = Add (c, bias) a = Softmax <axis = -1> (d) y = MatMul (a, v)",
        "c = MatMul (q, k) a = Softmax <axis = -1> (c) y0 = MatMul (a, v) r = ReduceSum (c) y = Add (y0, r)",
    ],
)
def test_the_bias_of_keys_counts_if_more_than_a_softmax_reads_the_scores(attention: str) -> None:
    before = graph(DEIT.replace(_ATTENTION, attention))
    after = project(before)
    assert not has_layer(after)
    assert_same(before, after)


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("weights that do not sum to 1", DEIT.replace("a = Softmax <axis = -1> (c)", "a = Relu (c)")),
        ("another reader of the keys", DEIT.replace("y = ", "y0 = ") + " r = ReduceMean (k) y = Add (y0, r)"),
        ("another order of values", DEIT.replace("v = Transpose", "v5 = Transpose") .replace(
            "y = MatMul (a, v)", "v = Gather <axis = 2> (v5, order) y = MatMul (a, v)")),
        ("keys of another image", DEIT.replace(
            "k4 = Reshape (s1, heads)", "o1 = Gather <axis = 0> (s1, others) k4 = Reshape (o1, heads)")),
    ],
    ids=lambda value: value if " " in value and "=" not in value else "",
)  # fmt: skip
def test_near_misses_stay(reason: str, body: str) -> None:
    order = np.asarray([1, 0, *range(2, TOKENS)])
    before = graph(body, "2, 2, 1, 3", "2", order=order, others=np.asarray([0, 0]))
    assert project(before).operators == before.operators, reason


def test_a_layer_that_is_an_output_stays() -> None:
    before = graph(DEIT, f"N, 2, 1, 3] y, float[N, {TOKENS}, {OUTPUTS}", output="l")
    assert project(before).operators == before.operators


def test_a_layer_with_little_work_stays() -> None:
    before = graph(DEIT)
    assert before.apply("project_queries", project_queries).operators == before.operators


def test_windows_whose_number_is_a_multiple_of_a_map_stay() -> None:
    """Their first axis is no batch of images: two of its entries do not make a map."""
    body = "l = MatMul (x, w) m = Reshape (l, maps) y = ReduceMean <keepdims = 0> (m, one_axis)"
    before = graph(body, "M, 8, 6, 18", "W", maps=np.asarray([-1, 8, 8, 6, 18]), one_axis=np.asarray([1]))
    assert project(before).operators == before.operators
