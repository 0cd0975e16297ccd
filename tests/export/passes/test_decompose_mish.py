"""Mish written with basic operators."""

from __future__ import annotations

import functools

from edgevit.export.passes.decompose_mish import decompose_mish
from edgevit.export.passes.downgrade_opset import downgrade_opset
from tests.helpers.graphs import HEADER, assert_same, parse


def test_mish_becomes_softplus_and_tanh() -> None:
    before = parse(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ y = Mish (x) }}")
    after = before.apply("decompose_mish", decompose_mish)
    assert dict(after.operators) == {"Softplus": 1, "Tanh": 1, "Mul": 1}
    assert_same(before, after.apply("opset", functools.partial(downgrade_opset, opset=17)))
