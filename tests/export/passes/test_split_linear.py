"""A layer for each part of an output that is split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.split_linear import split_linear
from edgevit.export.tensor_parts import joined_parts
from tests.helpers.graphs import HEADER, assert_same, noise, parse

_OUTPUTS = "float[N, 17, 2] q, float[N, 17, 3] k, float[N, 17, 4] v"
_SPLIT = "q, k, v = Split <axis = -1> (l, sizes)"


def graph(body: str, outputs: str = _OUTPUTS, rows: int | str = 17) -> OnnxGraph:
    constants = {"w": noise(5, 9), "b": noise(9, seed=1), "sizes": np.asarray([2, 3, 4]), "row": noise(1, 9)}
    return check(parse(f"{HEADER} g (float[N, {rows}, 5] x) => ({outputs}) {{{body}}}", **constants))


def widths(graph: OnnxGraph) -> Sequence[object]:
    products = [node.outputs[0].shape for node in graph.model.graph if node.op_type == "MatMul"]
    return [shape[-1] for shape in products if shape is not None]


@pytest.mark.parametrize("layer", ["p = MatMul (x, w) l = Add (p, b)", "l = MatMul (x, w)"])
@pytest.mark.parametrize("axis", ["-1", "2"])
def test_each_part_has_a_layer(layer: str, axis: str) -> None:
    before = graph(f"{layer} {_SPLIT}".replace("-1", axis))
    after = check(before.apply("split_linear", split_linear))
    assert after.operators["Split"] == 0
    assert widths(after) == [2, 3, 4]
    assert_same(before, after)


def test_the_parts_say_what_they_make_up() -> None:
    after = graph(f"l = MatMul (x, w) {_SPLIT}").apply("split_linear", split_linear)
    assert joined_parts(after) == {"l": ("q", "k", "v")}


@pytest.mark.parametrize(
    ("body", "outputs", "rows"),
    [
        (f"l = MatMul (x, w) {_SPLIT} y = Relu (l)", f"{_OUTPUTS}, float[N, 17, 9] y", 17),  # reads the whole
        ("p = MatMul (x, w) l = Add (p, row) " + _SPLIT, _OUTPUTS, 17),  # no bias of the layer
        ("l = MatMul (x, w) q, k = Split <axis = 1, num_outputs = 2> (l)", "float[N, 9, 9] q, float[N, 8, 9] k", 17),
        (f"l = MatMul (x, w) {_SPLIT}", _OUTPUTS.replace("17", "16"), 16),  # few rows: one layer is faster
        (f"l = MatMul (x, w) {_SPLIT}", _OUTPUTS.replace("17", "L"), "L"),  # perhaps few
    ],
)
def test_near_misses_stay(body: str, outputs: str, rows: int | str) -> None:
    before = graph(body, outputs, rows)
    after = before.apply("split_linear", split_linear)
    assert after.operators == before.operators
