"""Validation of a finished graph."""

from __future__ import annotations

import pytest

from edgevit.errors import ExportError
from edgevit.export.check import check
from tests.helpers.graphs import parse


def test_an_operator_that_onnx_does_not_define_is_named() -> None:
    graph = parse(
        """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> g (float[N, 4] x) => (float[N, 4] y) {
            a = Relu (x)
            b = com.microsoft.QuickGelu (a)
            y = Neg (b)
        }"""
    )
    with pytest.raises(
        ExportError, match=r"\(output b\) is a QuickGelu of the domain 'com.microsoft', which ONNX does not define"
    ):
        check(graph)
