"""Removal of slices that keep everything."""

from __future__ import annotations

import pytest

from edgevit.export.passes.eliminate_slices import eliminate_slices
from tests.helpers.graphs import HEADER, assert_same, parse


@pytest.mark.parametrize(("axis", "end", "left"), [(0, 2**63 - 1, 0), (1, 8, 0), (1, 7, 1)])
def test_slices_that_keep_everything_are_removed(axis: int, end: int, left: int) -> None:
    before = parse(
        f"""{HEADER} g (float[N, 8] x) => (float[N, M] y) {{
            start = Constant <value_ints = [0]> ()
            end = Constant <value_ints = [{end}]> ()
            axis = Constant <value_ints = [{axis}]> ()
            a = Slice (x, start, end, axis)
            y = Relu (a)
        }}"""
    )
    after = before.apply("eliminate_slices", eliminate_slices)
    assert after.operators["Slice"] == left
    assert_same(before, after, exact=True)
