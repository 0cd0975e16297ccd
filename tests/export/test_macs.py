"""Multiply-accumulate counts of nodes."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgevit.export.macs import graph_macs, graph_work
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


def test_the_work_of_a_graph_counts_weights_once_and_the_rest_by_image() -> None:
    graph = parse(f"{HEADER} g (float[batch, 3, 7] x) => (float[batch, 3, 5] y) {{ y = MatMul (x, w) }}", w=noise(7, 5))
    work = graph_work(graph, batch=1)
    assert (work.macs, work.weight_bytes, work.io_bytes, work.activation_bytes) == (105, 140, 144, 120)
    assert list(work.node_macs.values()) == [105]
    eight = work.for_batch(8)
    assert (eight.macs, eight.weight_bytes, eight.io_bytes, eight.activation_bytes) == (840, 140, 1152, 960)


def test_both_products_of_an_attention_are_counted() -> None:
    heads = "float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v"
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]> g ({heads}) => (float[1, 2, 3, 4] y) {{ y = Attention (q, k, v) }}'
    )
    assert graph_macs(parse(text)) == 2 * (2 * 3 * 4 * 5)


def test_windows_of_a_dynamic_batch_are_counted_for_one_image() -> None:
    graph = parse(
        f"{HEADER} g (float[K, 3, 7] x) => (float[K, 3, 5] y) {{ y = MatMul (x, w) }}",
        w=noise(7, 5),
    )
    for value in (*graph.model.graph.inputs, *graph.model.graph.outputs):
        value.shape = ir.Shape(["4*batch", *list(value.shape or ())[1:]])
    assert graph_macs(graph) == 4 * 3 * 7 * 5
