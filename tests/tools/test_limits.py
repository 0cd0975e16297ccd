"""The page of the time of layers: products against the best rate, and the kinds of the others."""

from __future__ import annotations

import pytest

from edgevit.runtimes.layer_profile import LayerTime
from tests.tools.limits import page, time_use

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
    text = page({"ort": [time_use("net", LAYERS, RATES)]}, "a processor (avx2)")
    assert "## fp32, ONNX Runtime" in text and "a processor (avx2)" in text and "OpenVINO\n" not in text
    assert "| `net` | 9.25 | 5.00 | 40, 50% | 4.25: Softmax 2.00, Gelu 1.50, Add 0.50 | 1.85 |" in text
