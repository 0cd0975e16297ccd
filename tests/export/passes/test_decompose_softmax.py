"""Softmax over another axis than the last with reductions."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes import specialize
from edgevit.export.passes.decompose_softmax import decompose_softmax
from tests.helpers.graphs import HEADER, assert_same, parse, run
from tests.helpers.quantization import load

STEPS = {"ReduceMax": 1, "Sub": 1, "Exp": 1, "ReduceSum": 1, "Reciprocal": 1, "Mul": 1}


def graph(axis: int, *, shape: str = "N, 2, 6, 64", scale: str = "1.0", dtype: str = "float") -> str:
    body = f"c = Constant <value_float = {scale}> () d = CastLike (c, x) s = Mul (x, d) y = Softmax <axis = {axis}> (s)"
    return f"{HEADER} g ({dtype}[{shape}] x) => ({dtype}[{shape}] y) {{ {body} }}"


@pytest.mark.parametrize("axis", [1, 2, -2, -3])
def test_rows_are_reduced(axis: int) -> None:
    before = parse(graph(axis))
    after = before.apply("decompose_softmax", decompose_softmax)
    assert after.operators["Softmax"] == 0
    assert {name: after.operators[name] - before.operators[name] for name in STEPS} == STEPS
    assert_same(before, after)


def test_large_logits_do_not_overflow() -> None:
    before = parse(graph(2, scale="1e30"))
    after = before.apply("decompose_softmax", decompose_softmax)
    assert np.isfinite(run(after)["y"]).all()
    assert_same(before, after)


def test_masked_rows_and_nan_are_as_in_a_softmax() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 64)).astype(np.float32)
    x[0, 0, 2, :] = -np.inf  # one token is masked
    x[0, 1, :, 3] = -np.inf  # all tokens of a pixel
    x[0, 1, 4, 5], x[0, 0, 1, 7] = np.nan, np.inf
    before = parse(graph(2))
    after = before.apply("decompose_softmax", decompose_softmax)
    expected, actual = (load(each)({"x": x})["y"] for each in (before, after))
    assert np.array_equal(np.isnan(actual), np.isnan(expected)) and np.isnan(expected).any()
    assert np.allclose(actual, expected, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "text",
    [
        graph(-1),
        graph(3),
        graph(2, shape="N, 2, 6, 63"),  # short rows
        graph(2, shape="N, 2, 6, P"),  # rows of unknown length
        graph(2, dtype="double"),
    ],
)
def test_other_softmax_stay(text: str) -> None:
    before = parse(text)
    assert before.apply("decompose_softmax", decompose_softmax).operators == before.operators


@pytest.mark.parametrize(
    ("target", "opset", "softmax"),
    [("ort", 20, 0), ("ort", 17, 1), ("onnx", 20, 1), ("openvino", 20, 1), ("trt", 17, 1)],
)
def test_only_onnx_runtime_gets_reductions(target: str, opset: int, softmax: int) -> None:
    assert specialize(parse(graph(2)), target, opset=opset).operators["Softmax"] == softmax
