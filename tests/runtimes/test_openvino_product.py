"""The product whose rate bounds a model is the faster one of a matmul and a convolution in int8."""

from __future__ import annotations

import importlib

import numpy as np
import openvino
import pytest

from edgevit.runtimes import openvino_product
from edgevit.runtimes.openvino_precision import DEVICE
from edgevit.types import Array

SHAPE = (12, 64, 32)  # rows, inner, columns
OPSET = importlib.import_module("openvino.opset13")


def test_the_convolution_computes_the_products_of_the_matmul() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, SHAPE[:2]).astype(np.float32)

    def run(model: openvino.Model) -> Array:
        compiled = openvino.Core().compile_model(model, DEVICE, {"INFERENCE_PRECISION_HINT": "f32"})
        results: Array = compiled(rows)[0]
        return results

    found = run(openvino_product._int8_convolution(openvino, OPSET, SHAPE))
    np.testing.assert_allclose(found, run(openvino_product._int8_matmul(openvino, OPSET, SHAPE)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("faster", ["matmul", "convolution"])
def test_the_faster_product_in_int8_is_timed(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_names: dict[int, str] = {}
    make = openvino_product._product

    def named(compiled: openvino.CompiledModel) -> object:
        product = make(compiled)
        compiled_names[id(product)] = str(compiled.get_property("NETWORK_NAME"))
        return product

    monkeypatch.setattr(openvino_product, "_product", named)
    monkeypatch.setattr(openvino_product, "_second_run_s", lambda each: compiled_names[id(each)] != faster)
    product = openvino_product.matmul(openvino, {}, SHAPE, "int8")
    assert sorted(compiled_names.values()) == ["convolution", "matmul"]
    assert compiled_names[id(product)] == faster


def test_other_precisions_have_no_product() -> None:
    assert openvino_product.matmul(openvino, {}, SHAPE, "fp16") is None
