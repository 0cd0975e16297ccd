"""Operators that move whole rows become one Gather with the same result; others stay."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.gather_rows import gather_rows
from tests.helpers.graphs import HEADER, assert_same, parse

SHAPES = {
    "windows": np.asarray([1, 2, 2, 2, 2, 3]),
    "apart": np.asarray([4, 4, 3]),
    "long": np.asarray([4, 12]),
    "back": np.asarray([1, 4, 4, 3]),
    "same": np.asarray([0, 4, 0, 3]),
    "heads": np.asarray([1, 4, 4, 3, 1]),
    "one": np.asarray([1]),
    "four": np.asarray([4]),
    "end": np.asarray([1 << 40]),
    "first": np.asarray([-(1 << 40)]),
    "last": np.asarray([-1]),
    "zero": np.asarray([0]),
    "two": np.asarray([2]),
    "sizes": np.asarray([1, 3]),
    "axis": np.asarray([1]),
}
ROLL = """a, b = Split <axis = 1> (r, sizes) c = Concat <axis = 1> (b, a)
    d, e = Split <axis = 2> (c, sizes) f = Concat <axis = 2> (e, d)"""
WINDOWS = "g = Reshape (f, windows) h = Transpose <perm = [0, 1, 3, 2, 4, 5]> (g) i = Reshape (h, apart)"
WHOLE = "j = Reshape (i, windows) k = Transpose <perm = [0, 1, 3, 2, 4, 5]> (j) l = Reshape (k, back)"
SWAP, TURN = "Transpose <perm = [0, 2, 1, 3]>", "Transpose <perm = [0, 1, 3, 2]>"
HALVES = "Split <axis = 2, num_outputs = 2>"


def graph(body: str, *, x: str = "1, 4, 4, 3", outputs: str = "y") -> OnnxGraph:
    return parse(f"{HEADER} g (float[{x}] x) => ({outputs}) {{ {body} }}", **SHAPES)


def gathered(before: OnnxGraph) -> OnnxGraph:
    return before.apply("gather_rows", gather_rows)


@pytest.mark.parametrize(
    "body",
    [
        f"r = Relu (x) {ROLL} {WINDOWS} y = Relu (i)",
        f"r = Relu (x) {ROLL} {WINDOWS} {WHOLE} y = Relu (l)",
        f"r = Relu (x) {ROLL} n = Reshape (f, same) y = Relu (n)",
        "a = Slice (x, one, end, axis) b = Slice (x, zero, one, axis) c = Concat <axis = 1> (a, b) y = Relu (c)",
        f"a = Slice (x, last, first, axis, last) b = {SWAP} (a) c = Slice (b, zero, end, axis, two) y = Relu (c)",
        f"a, b = {HALVES} (x) c = Concat <axis = 2> (b, a) d = {SWAP} (c) y = Relu (d)",
    ],
)
def test_one_gather_moves_the_rows(body: str) -> None:
    before = graph(body)
    after = gathered(before)
    assert after.operators["Gather"] == 1
    assert not {"Split", "Slice", "Concat", "Transpose"} & set(after.operators)
    assert_same(before, after, exact=True)


def test_a_value_in_between_that_is_read_stays() -> None:
    before = graph(f"r = Relu (x) {ROLL} {WINDOWS} y = Relu (i) z = Relu (f)", outputs="y, z")
    after = gathered(before)
    assert after.operators["Gather"] == 2
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("body", "x"),
    [
        (f"r = Relu (x) {ROLL} {WINDOWS} y = Relu (i)", "N, 4, 4, 3"),  # a dynamic batch
        ("a = Transpose <perm = [0, 2, 1, 3]> (x) y = Relu (a)", "1, 4, 4, 3"),  # one copy
        # values leave their rows
        (f"a = {TURN} (x) b = {SWAP} (a) c = {TURN} (b) y = Relu (c)", "1, 4, 4, 4"),
        # values change places within their rows
        (
            f"a, b = Split <axis = 3, num_outputs = 2> (x) c = Concat <axis = 3> (b, a) d = {SWAP} (c) y = Relu (d)",
            "1, 4, 4, 4",
        ),
        # two sources
        (f"r = Relu (x) a, b = {HALVES} (r) c = Concat <axis = 2> (b, x) d = {SWAP} (c) y = Relu (d)", "1, 4, 4, 3"),
        # rows of another length
        (f"r = Relu (x) {ROLL} n = Reshape (f, long) y = Relu (n)", "1, 4, 4, 3"),
        # the moves cancel
        (f"a = {SWAP} (x) b = {SWAP} (a) c = {SWAP} (b) d = {SWAP} (c) y = Relu (d)", "1, 4, 4, 3"),
    ],
)
def test_others_stay(body: str, x: str) -> None:
    before = graph(body, x=x)
    after = gathered(before)
    assert after.operators == before.operators


def test_operators_of_another_domain_stay() -> None:
    before = graph(f"a = {SWAP} (x) b, c = {HALVES} (a) d = Concat <axis = 2> (c, b) y = Relu (d)")
    assert gathered(before).operators["Gather"] == 1
    for node in before.model.graph:
        node.domain = "some.vendor" if node.op_type == "Transpose" else node.domain
    assert gathered(before).operators == before.operators
