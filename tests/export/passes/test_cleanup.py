"""Merging of duplicates and removal of unused nodes."""

from __future__ import annotations

from edgevit.export.passes.cleanup import cleanup
from tests.helpers.graphs import HEADER, assert_same, parse


def test_duplicate_and_unused_nodes_are_removed() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{
            one = Constant <value_floats = [1.0]> ()
            again = Constant <value_floats = [1.0]> ()
            a = Add (x, one)
            b = Add (x, again)
            c = Identity (b)
            unused = Exp (x)
            y = Mul (a, c)
        }}"""
    )
    after = before.apply("cleanup", cleanup)
    assert dict(after.operators) == {"Add": 1, "Mul": 1}
    assert_same(before, after, exact=True)
