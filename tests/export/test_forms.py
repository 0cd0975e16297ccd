"""Exact forms of a graph: the same numbers from other operators."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.errors import UsageError
from edgevit.export.check import check
from edgevit.export.forms import FORMS, STANDARD, other_forms, specialize
from tests.helpers.graphs import HEADER, assert_same, noise, parse

TRANSFORMER = parse(
    f"""{HEADER} g (float[N, 5, 4] x) => (float[N, 4] y) {{
        n = LayerNormalization <axis = -1> (x, scale, bias)
        h = MatMul (n, w)
        s = Add (x, h)
        y = Gather <axis = 1> (s, first)
    }}""",
    scale=noise(4, offset=1), bias=noise(4, seed=2), w=noise(4, 4, seed=3), first=np.asarray(0),
)  # fmt: skip


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_the_class_token_alone_is_a_form_that_computes_the_same(fmt: str) -> None:
    assert other_forms(TRANSFORMER, fmt) == ("class-token",)
    standard = check(specialize(TRANSFORMER, fmt))
    assert_same(standard, check(specialize(TRANSFORMER, fmt, "class-token")))


def test_the_standard_form_keeps_all_rows_of_every_module() -> None:
    # A failed parity check is explained by comparing the modules' tensors with PyTorch's, which have all rows.
    assert specialize(TRANSFORMER, "ort").operators == specialize(TRANSFORMER, "ort", STANDARD).operators
    (product,) = [node for node in specialize(TRANSFORMER, "ort").model.graph if node.op_type == "MatMul"]
    assert product.outputs[0].shape is not None
    assert list(product.outputs[0].shape)[1:] == [5, 4]


def test_an_unknown_form_is_a_usage_error() -> None:
    assert "fastest" not in FORMS
    with pytest.raises(UsageError, match="form of the graph"):
        specialize(TRANSFORMER, "ort", "fastest")
