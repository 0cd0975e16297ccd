"""Computing only the row that a Gather selects."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.prune_unread_rows import prune_unread_rows
from edgevit.export.tensor_parts import KeptRow, kept_rows
from tests.helpers.graphs import HEADER, assert_same, noise, parse

_MLP = """n = LayerNormalization <axis = -1> (x, gamma, beta) h = MatMul (n, up) b = Add (h, bias) a = Relu (b)
    m = MatMul (a, down) s = Add (x, m)"""
_ATTENTION = """q4 = Reshape (x, split) q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k4 = Reshape (x, split) k = Transpose <perm = [0, 2, 3, 1]> (k4)
    c = MatMul (q, k) p = Softmax <axis = -1> (c) v = Transpose <perm = [0, 2, 1, 3]> (q4) o = MatMul (p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o) r = Reshape (t, merged) w = MatMul (r, square) s = Add (x, w)"""

_CONSTANTS = "p = Add (x, table) r = Add (row, p) h = MatMul (r, square) s = Mul (h, table)"
_COLUMNS = """t = Transpose <perm = [0, 2, 1]> (x) h = MatMul (t, mix) s = Transpose <perm = [0, 2, 1]> (h)"""


def _graph(body: str, *, index: object = 0, shape: str = "N, 4") -> OnnxGraph:
    graph = parse(
        f"{HEADER} g (float[N, 5, 4] x) => (float[{shape}] y) {{{body}}}",
        gamma=noise(4),
        beta=noise(4),
        up=noise(4, 8),
        bias=noise(8),
        down=noise(8, 4),
        square=noise(4, 4),
        table=noise(5, 4),
        row=noise(1, 4),
        split=np.asarray([-1, 5, 2, 2]),
        merged=np.asarray([-1, 5, 4]),
        i=np.asarray(index),
        axis=np.asarray([1]),
        mix=noise(5, 5),
    )
    return check(graph)


def _rows(product: ir.Node) -> object:
    shape = product.outputs[0].shape
    return None if shape is None else shape[-2]


@pytest.mark.parametrize("layer", [_MLP, _ATTENTION, _CONSTANTS])
@pytest.mark.parametrize("index", [0, 3, -1])
def test_a_layer_computes_one_row(layer: str, index: int) -> None:
    before = _graph(f"{layer} y = Gather <axis = 1> (s, i)", index=index)
    after = before.apply("prune_unread_rows", prune_unread_rows)
    assert after.operators["Squeeze"] == 1
    assert {_rows(node) for node in after.model.graph if node.op_type == "MatMul"} == {1}
    assert_same(before, after)


@pytest.mark.parametrize("index", [0, 3, -1])
def test_a_tensor_with_one_row_left_says_which(index: int) -> None:
    before = _graph(f"{_ATTENTION} y = Gather <axis = 1> (s, i)", index=index)
    found = kept_rows(before.apply("prune_unread_rows", prune_unread_rows))
    assert {name: row for name, row in found.items() if not name.startswith("val_")} == {
        **dict.fromkeys(["t", "r", "w", "s"], KeptRow(1, index)),
        **dict.fromkeys(["q", "c", "p", "o"], KeptRow(2, index)),
    }
    assert not kept_rows(before)


@pytest.mark.parametrize(
    "body",
    [
        f"{_MLP} z = Gather <axis = 1> (s, i) u = ReduceMean <keepdims = 0> (s, axis) y = Add (z, u)",  # reads all
        "h = MatMul (x, square) f = Softmax <axis = 1> (h) y = Gather <axis = 1> (f, i)",  # mixes the rows
        f"{_COLUMNS} y = Gather <axis = 1> (s, i)",  # the rows are columns of the product
        "s = Relu (x) y = Gather <axis = 1> (s, i)",  # no linear layer
    ],
)
def test_rows_that_depend_on_one_another_stay(body: str) -> None:
    before = _graph(body)
    after = before.apply("prune_unread_rows", prune_unread_rows)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(("index", "shape", "is_pruned"), [([0], "N, 1, 4", True), ([[0]], "N, 1, 1, 4", False)])
def test_an_index_that_adds_an_axis_stays(index: object, shape: str, is_pruned: bool) -> None:
    before = _graph(f"{_MLP} y = Gather <axis = 1> (s, i)", index=index, shape=shape)
    after = before.apply("prune_unread_rows", prune_unread_rows)
    assert ({_rows(node) for node in after.model.graph if node.op_type == "MatMul"} == {1}) == is_pruned
    assert_same(before, after)
