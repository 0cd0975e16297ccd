"""Heads of attention that ONNX Runtime reads with strides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.strided_heads import strided_heads
from tests.helpers.graphs import HEADER, assert_same, noise, parse

_QUERIES = "q4 = Reshape (x, heads) q = Transpose <perm = [0, 2, 1, 3]> (q4)"
_KEYS = "k4 = Reshape (z, heads) k = Transpose <perm = [0, 2, 1, 3]> (k4) t = Transpose <perm = [0, 1, 3, 2]> (k)"
_VALUES = "v4 = Reshape (w, heads) v = Transpose <perm = [0, 2, 1, 3]> (v4)"
_SCALED = "s = Mul (q, scale) c = MatMul (s, t) a = Softmax <axis = -1> (c) y = MatMul (a, v)"
ATTENTION = f"{_QUERIES} {_KEYS} {_VALUES} {_SCALED}"


def graph(body: str, batch: str = "1", shape: str = "2, 5, 3") -> OnnxGraph:
    inputs = ", ".join(f"float[{batch}, 5, 6] {name}" for name in "xzw")
    text = f"{HEADER} g ({inputs}) => (float[{batch}, {shape}] y) {{{body}}}"
    row = noise(1, 1, 1, 3)
    return check(parse(text, heads=np.asarray([-1, 5, 2, 3]), scale=np.asarray(0.5, np.float32), row=row))


def orders(graph: OnnxGraph) -> Counter[tuple[int, ...]]:
    found = [node for node in graph.model.graph if node.op_type == "Transpose"]
    return Counter(tuple(node.attributes.get_ints("perm", ()) or ()) for node in found)


def test_onnxruntime_copies_no_heads(tmp_path: Path) -> None:
    before = graph(ATTENTION)
    after = check(before.apply("strided_heads", strided_heads))
    assert orders(after) == {(1, 2, 0, 3): 3, (0, 1, 3, 2): 1}
    assert_same(before, after, exact=True)
    assert [executed(each, tmp_path)["Transpose"] for each in (before, after)] == [3, 0]


def executed(graph: OnnxGraph, folder: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime runs."""
    graph.save(folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("batch", ["N", "2"])
def test_heads_of_several_images_stay(batch: str) -> None:
    before = graph(ATTENTION, batch)
    assert orders(before.apply("strided_heads", strided_heads)) == orders(before)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (f"{_QUERIES} y = Relu (q)", "2, 5, 3"),
        (f"{_QUERIES} {_KEYS} c = MatMul (q, t) r = ReduceMean (q) y = Add (c, r)", "2, 5, 5"),
        (f"{_QUERIES} {_KEYS} s = Mul (q, row) y = MatMul (s, t)", "2, 5, 5"),
        (f"{_QUERIES} {_KEYS} s = Div (row, q) y = MatMul (s, t)", "2, 5, 5"),
        (f"{_QUERIES} {_KEYS} d = MatMul (q, t) e = ReduceMean (q4) y = Add (d, e)", "2, 5, 5"),
        (f"{_QUERIES} {_KEYS} s = Mul (q, scale) d = MatMul (s, t) e = ReduceMean (s) y = Add (d, e)", "2, 5, 5"),
    ],
)
def test_heads_that_more_than_a_product_reads_stay(body: str, shape: str) -> None:
    before = graph(body, shape=shape)
    assert orders(before)[0, 2, 1, 3] == orders(before.apply("strided_heads", strided_heads))[0, 2, 1, 3] + (
        1 if "(k4)" in body else 0
    )
