"""Matmuls of 8-bit numbers in the layers into which OpenVINO compiles several operators.

Which operators share a layer depends on the processor: with AVX-512, linear layers in sequence do.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from onnx import parser

from edgevit.runtimes.openvino_precision import Operator, _multiplies_int8, multiplying_operators
from edgevit.runtimes.registry import get_runtime

WEIGHTS = Operator(matmuls=1, macs=8, has_weights=True)
PRODUCT = Operator(matmuls=1, macs=8)
ATTENTION = Operator(matmuls=2, macs=8)


@pytest.mark.parametrize(
    ("int8_inputs", "fused", "expected"),
    [
        (3, (WEIGHTS, WEIGHTS, WEIGHTS), True),  # the input of the first is quantized within the layer
        (2, (WEIGHTS, WEIGHTS, WEIGHTS), False),
        (3, (ATTENTION,), True),
        (2, (ATTENTION,), False),
        (3, (PRODUCT, PRODUCT), True),
        (2, (PRODUCT, PRODUCT), False),
        (4, (PRODUCT, PRODUCT, WEIGHTS), True),
        (3, (PRODUCT, PRODUCT, WEIGHTS), False),
    ],
)
def test_every_matmul_needs_8_bit_inputs(int8_inputs: int, fused: tuple[Operator, ...], expected: bool) -> None:
    get_runtime("openvino").load()
    from openvino import opset13

    layer = opset13.concat([opset13.parameter([1], np.int8) for _ in range(int8_inputs)], 0)
    assert _multiplies_int8(layer, fused) is expected


def test_weights_may_be_dequantized() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 4] x) => (float[2, 2] y) <int8[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float s = {0.5}> {
            f = DequantizeLinear (w, s)
            a = MatMul (x, f)
            t = Transpose <perm = [1, 0]> (a)
            y = MatMul (a, t)
        }""")
    ov = get_runtime("openvino").load()
    operators = multiplying_operators(ov.convert_model(io.BytesIO(model.SerializeToString())))
    assert sorted(operator.has_weights for operator in operators.values()) == [False, True]
