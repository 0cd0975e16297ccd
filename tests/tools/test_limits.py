"""The page of the time of layers: products against the best rate, and the kinds of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import node_macs
from edgevit.runtimes.layer_profile import LayerTime
from tests.helpers.onnx_files import save_graph
from tests.tools.layer_kinds import (
    ATTENTION,
    DEPTHWISE,
    FUSED,
    GROUPED,
    LINEAR,
    POINTWISE,
    SHORT_LINEAR,
    SPATIAL,
    KindUse,
    LayerShape,
    LayerShapes,
    kinds_of,
)
from tests.tools.limits import Bandwidth, page, time_use

LAYERS = [
    LayerTime(name="a", kind="Conv", module="a", ms=2.0, macs=10**8, precision="int8"),
    LayerTime(name="b", kind="Gemm", module="b", ms=3.0, macs=10**8, precision="fp32"),
    LayerTime(name="c", kind="Softmax", module="c", ms=1.0),
    LayerTime(name="d", kind="Gelu", module="d", ms=1.5),
    LayerTime(name="e", kind="Softmax", module="e", ms=1.0),
    LayerTime(name="f", kind="Add", module="f", ms=0.5),
    LayerTime(name="g", kind="Mul", module="g", ms=0.25),
]
RATES = {"fp32": 5e10, "int8": 2e11}  # 2 and 0.5 ms for the two products


def test_products_are_measured_against_the_best_rate_of_their_precision() -> None:
    use = time_use("net", LAYERS, RATES)
    assert (use.products_ms, use.ideal_ms) == pytest.approx((5.0, 2.5))
    assert use.all_ms == pytest.approx(9.25)
    assert list(use.others_ms.items()) == [("Softmax", 2.0), ("Gelu", 1.5), ("Add", 0.5), ("Mul", 0.25)]


def test_the_page_has_a_table_for_each_engine() -> None:
    kinds = {POINTWISE: KindUse(layers=2, ms=5.0, giga_macs=0.2, product_ms=2.5, roofline_ms=4.0)}
    text = page(
        {"ort": [time_use("net", LAYERS, RATES, kinds)]}, "a processor (avx2)", Bandwidth(copied_bytes_per_s=2e10)
    )
    assert "## fp32, ONNX Runtime" in text and "a processor (avx2)" in text and "OpenVINO\n" not in text
    assert "| convolution, 1x1 | 2 | 5.0, 54% | 40, 50% | 1.25 |\n| others |  | 4.2, 46% |  |  |\n" in text
    assert "| `net` | 9.25 | 5.00 | 40, 50% | 4.25: Softmax 2.00, Gelu 1.50, Add 0.50 | 1.85 |" in text
    assert "caches (20 GB/s)" in text


def test_layers_have_the_kind_and_the_bytes_of_their_node(tmp_path: Path) -> None:
    graph = _graph(
        tmp_path,
        "g (float[1, 8, 4, 4] x) => (float[1, 2] y, float[1, 32, 32] q) <int64[3] shape = {1, 32, 4}>",
        {
            "a/Conv": "c = Conv(x, w)",
            "b/Conv": "d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, k)",
            "c/Conv": "e = Conv <group = 2, pads = [1, 1, 1, 1]> (d, g)",
            "d/Conv": "f = Conv <pads = [1, 1, 1, 1]> (e, s)",
            "e/GlobalAveragePool": "p = GlobalAveragePool(f)",
            "e/Flatten": "v = Flatten(p)",
            "e/Gemm": "y = Gemm(v, m)",
            "f/Reshape": "t = Reshape(f, shape)",
            "f/MatMul": "r = MatMul(t, n)",
            "g/Transpose": "u = Transpose <perm = [0, 2, 1]> (r)",
            "g/MatMul": "q = MatMul(r, u)",
        },
        {"w": (8, 8, 1, 1), "k": (8, 1, 3, 3), "g": (8, 4, 3, 3), "s": (8, 8, 3, 3), "m": (8, 2), "n": (4, 4)},
    )
    shapes = LayerShapes(graph)
    found = {node.name: shapes.find(_layer(str(node.name), node_macs(node))) for node in graph.model.graph}
    assert found["a/Conv"] == LayerShape(kind=POINTWISE, weights=64, activations=128 + 128)
    assert found["b/Conv"].kind == DEPTHWISE
    assert found["c/Conv"].kind == GROUPED
    assert found["d/Conv"].kind == SPATIAL
    assert found["e/Gemm"] == LayerShape(kind=SHORT_LINEAR, weights=16, activations=8 + 2)
    assert found["f/MatMul"].kind == LINEAR
    assert found["g/MatMul"] == LayerShape(kind=ATTENTION, weights=0, activations=128 + 128 + 1024)
    assert shapes.find(_layer("h/Subgraph", 12345)) == LayerShape(kind=FUSED, weights=0, activations=0)


def test_the_roofline_of_a_layer_is_its_arithmetic_or_its_bytes(tmp_path: Path) -> None:
    layers = [LAYERS[0], _layer("e/Gemm", 16), _layer("e/Gemm", 16)]
    signature = "g (float[1, 8] x) => (float[1, 2] y)"
    shapes = LayerShapes(_graph(tmp_path, signature, {"e/Gemm": "y = Gemm(x, m)"}, {"m": (8, 2)}))
    kinds = kinds_of(layers, shapes, RATES, read_bytes_per_s=1e5, copied_bytes_per_s=1e6)
    assert kinds[FUSED].roofline_ms == kinds[FUSED].product_ms == pytest.approx(0.5)
    assert kinds[SHORT_LINEAR].layers == 2
    assert kinds[SHORT_LINEAR].roofline_ms == pytest.approx(2 * 1e3 * 4 * (16 / 1e5 + 10 / 1e6))


def _graph(folder: Path, signature: str, nodes: dict[str, str], weights: dict[str, tuple[int, ...]]) -> OnnxGraph:
    return check(OnnxGraph.load(save_graph(folder / "model.onnx", signature, nodes, weights)))


def _layer(name: str, macs: int) -> LayerTime:
    return LayerTime(name=name, kind="", module=name.partition("/")[0], ms=1.0, macs=macs, precision="fp32")
