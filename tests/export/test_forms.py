"""Exact forms of a graph: the same numbers from other operators."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit import cpu
from edgevit.errors import UsageError
from edgevit.export.check import check
from edgevit.export.forms import FORMS, other_forms, specialize
from edgevit.types import Precision
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


@pytest.mark.parametrize(("fmt", "rows"), [("ort", 1), ("openvino", 1), ("onnx", 5), ("trt", 5)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engines_on_this_processor_compute_only_the_class_token_in_the_last_layer(
    fmt: str, rows: int, precision: Precision
) -> None:
    graph = check(specialize(TRANSFORMER, fmt, precision=precision))
    (product,) = [node for node in graph.model.graph if node.op_type == "MatMul"]
    assert product.outputs[0].shape is not None
    assert list(product.outputs[0].shape)[1:] == [rows, 4]
    assert_same(TRANSFORMER, graph)


def test_forms_of_the_same_operators_are_one() -> None:
    assert other_forms(TRANSFORMER, "ort") == ()


def test_an_unknown_form_is_a_usage_error() -> None:
    assert "fastest" not in FORMS
    with pytest.raises(UsageError, match="form of the graph"):
        specialize(TRANSFORMER, "ort", "fastest")


@pytest.mark.parametrize(("flags", "precision", "forms"), [
    ("avx2", "fp32", ("winograd_rows",)),
    ("avx2 avx512f", "fp32", ()),  # there it is the standard
    ("avx2", "int8", ()),
])  # fmt: skip
def test_a_form_is_tried_in_its_precision_where_it_is_not_the_standard(
    flags: str, precision: Precision, forms: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    convolution = parse(
        f"{HEADER} g (float[N, 64, 16, 16] x) => (float[N, 64, 16, 16] y) {{ y = Conv <pads = [1, 1, 1, 1]> (x, w) }}",
        w=noise(64, 64, 3, 3),
    )
    assert other_forms(convolution, "ort", precision=precision) == forms
