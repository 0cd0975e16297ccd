"""Constant target shapes of Reshape."""

from __future__ import annotations

from edgevit.export.passes.freeze_reshape_shapes import freeze_reshape_shapes
from tests.helpers.graphs import HEADER, assert_same, parse


def test_a_computed_shape_becomes_a_constant() -> None:
    before = parse(
        f"""{HEADER} g (float[batch, 4, 6] x) => (float[batch, 24] y) {{
            n = Shape <start = 0, end = 1> (x)
            rest = Constant <value_ints = [24]> ()
            target = Concat <axis = 0> (n, rest)
            y = Reshape (x, target)
        }}"""
    )
    after = before.apply("freeze_reshape_shapes", freeze_reshape_shapes)
    assert dict(after.operators) == {"Reshape": 1}
    assert_same(before, after, exact=True)
