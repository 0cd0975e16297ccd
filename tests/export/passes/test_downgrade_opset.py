"""Conversion to older opsets."""

from __future__ import annotations

import pytest

from edgevit.errors import ExportError
from edgevit.export.passes import specialize
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.downgrade_opset import downgrade_opset
from tests.helpers.graphs import HEADER, assert_same, parse


def test_operators_that_the_older_opset_lacks_are_rejected() -> None:
    graph = parse(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu (x) }}")
    with pytest.raises(ExportError, match="needs opset 20"):
        downgrade_opset(graph.model, 19)
    with pytest.raises(ExportError, match="opset 16 is not supported: use one from 17 to 21"):
        downgrade_opset(graph.model, 16)


def test_axes_become_an_attribute() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6] x) => (float[N, 4] y) {{
            axes = Constant <value_ints = [2]> ()
            y = ReduceMean <keepdims = 0, noop_with_empty_axes = 0> (x, axes)
        }}"""
    )
    assert_same(before, specialize(before.apply("cleanup", cleanup), "onnx", opset=17))
