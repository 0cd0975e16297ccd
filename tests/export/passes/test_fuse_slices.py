"""Merging of slices on different axes."""

from __future__ import annotations

import numpy as np

from edgevit.export.passes.fuse_slices import fuse_slices
from tests.helpers.graphs import HEADER, assert_same, parse

SLICES = f"""{HEADER} g (float[N, 8, 5, 5] x) => (float[N, 4, 5, 4] y) {{
    four = Constant <value_ints = [4]> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    three = Constant <value_ints = [3]> ()
    last = Constant <value_ints = [9223372036854775807]> ()
    a = Slice (x, zero, four, one)
    %s
    y = Slice (a, one, last, three)
}}"""


def test_slices_on_different_axes_are_merged() -> None:
    before = parse(SLICES % "")
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 1
    assert_same(before, after, exact=True)


def test_slices_with_32_bit_parameters_are_merged() -> None:
    """Without steps, which the merged slice has: a Slice has one type for all its parameters."""
    numbers = {"zero": 0, "one": 1, "three": 3, "four": 4, "last": 9}
    before = parse(
        f"""{HEADER} g (float[N, 8, 5, 5] x) => (float[N, 4, 5, 4] y) {{
            a = Slice (x, zero, four, one)
            y = Slice (a, one, last, three)
        }}""",
        **{name: np.asarray([number], np.int32) for name, number in numbers.items()},
    )
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 1
    assert_same(before, after, exact=True)


def test_a_slice_with_other_consumers_stays() -> None:
    before = parse((SLICES % "z = Relu (a)").replace("[N, 4, 5, 4] y)", "[N, 4, 5, 4] y, float[N, 4, 5, 5] z)"))
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 2
    assert_same(before, after, exact=True)


def test_slices_on_the_same_axis_stay() -> None:
    text = (SLICES % "").replace("(a, one, last, three)", "(a, one, last, one)")
    before = parse(text.replace("4, 5, 4] y", "3, 5, 5] y"))
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 2
    assert_same(before, after, exact=True)
