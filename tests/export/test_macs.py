"""Multiply-accumulate counts of nodes."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgevit.export.macs import graph_macs
from edgevit.types import Array
from tests.helpers.graphs import HEADER, noise, parse


@pytest.mark.parametrize(
    ("body", "weights", "macs"),
    [
        ("float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y) { y = Conv (x, w)", {"w": noise(8, 4, 3, 3)}, 8 * 16 * 4 * 9),
        ("float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) { y = Conv <group = 2> (x, w)", {"w": noise(8, 2, 1, 1)}, 576),
        (
            "float[N, 4, 3, 3] x) => (float[N, 5, 4, 4] y) { y = ConvTranspose (x, w)",
            {"w": noise(4, 5, 2, 2)},
            4 * 9 * 5 * 4,
        ),
        ("float[N, 7] x) => (float[N, 5] y) { y = Gemm <transB = 1> (x, w)", {"w": noise(5, 7)}, 35),
        ("float[N, 3, 7] x) => (float[N, 3, 5] y) { y = MatMul (x, w)", {"w": noise(7, 5)}, 105),
        ("float[N, 3, 7] x) => (float[N, 3] y) { y = MatMul (x, w)", {"w": noise(7)}, 21),
        ("float[N, 3, 7] x, float[N, 7, 3] t) => (float[N, 3, 3] y) { y = MatMul (x, t)", {}, 63),
        ("float[N, 4] x) => (float[N, 4] y) { y = Relu (x)", {}, 0),
    ],
)  # fmt: skip
def test_a_node_is_counted_for_one_image(body: str, weights: dict[str, Array], macs: int) -> None:
    assert graph_macs(parse(f"{HEADER} g ({body} }}", **weights)) == macs


def test_windows_of_a_dynamic_batch_are_counted_for_one_image() -> None:
    graph = parse(
        f"{HEADER} g (float[K, 3, 7] x) => (float[K, 3, 5] y) {{ y = MatMul (x, w) }}",
        w=noise(7, 5),
    )
    for value in (*graph.model.graph.inputs, *graph.model.graph.outputs):
        value.shape = ir.Shape(["4*batch", *list(value.shape or ())[1:]])
    assert graph_macs(graph) == 4 * 3 * 7 * 5
