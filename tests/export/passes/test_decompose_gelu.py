"""Gelu written with Erf."""

from __future__ import annotations

import functools

import pytest

from edgevit.export.passes.decompose_gelu import decompose_gelu
from edgevit.export.passes.downgrade_opset import downgrade_opset
from tests.helpers.graphs import HEADER, assert_same, parse, run


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_with_basic_operators_is_equivalent(approximate: str) -> None:
    node = f'y = Gelu <approximate = "{approximate}"> (x)'
    before = parse(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ {node} }}")
    after = before.apply("decompose_gelu", decompose_gelu).apply("opset", functools.partial(downgrade_opset, opset=17))
    assert after.opset == 17
    assert "Gelu" not in after.operators
    assert_same(before, after)


def test_a_pass_does_not_change_its_input_graph() -> None:
    before = parse(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu (x) }}")
    before.apply("decompose_gelu", decompose_gelu)
    assert dict(before.operators) == {"Gelu": 1}
    assert run(before)
