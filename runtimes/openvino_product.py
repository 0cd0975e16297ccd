"""Matmuls in OpenVINO that measure its best rate, for the roofline."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgevit.runtimes.base import Operations
from edgevit.runtimes.openvino_precision import (
    CAPABILITIES,
    DEVICE,
    capabilities,
    multiplying_operators,
    read_precision,
)

_FLOATS = {"fp32": "f32", "bf16": "bf16"}  # inference precisions in which products are timed


def matmul(ov: Any, settings: Mapping[str, Any], shape: tuple[int, int, int], precision: str) -> Operations | None:
    """Return one matrix product, compiled with `settings`; see Engine.matmul.

    In int8 it is a matmul or a convolution, whichever is faster: on x86 without VNNI and AVX-512, OpenVINO's int8
    matmul is slower than its convolution (docs/quantization.md).
    """
    opset = importlib.import_module(f"{ov.__name__}.opset13")
    own = dict(settings)
    if precision in _FLOATS:
        if CAPABILITIES[_FLOATS[precision]] not in capabilities(ov):
            return None
        own["INFERENCE_PRECISION_HINT"] = _FLOATS[precision]  # whatever the engine itself runs in
        models = [_float_matmul(ov, opset, shape)]
    elif precision == "int8":
        models = [_int8_matmul(ov, opset, shape), _int8_convolution(ov, opset, shape)]
    else:
        return None
    compiled = [ov.Core().compile_model(model, DEVICE, own) for model in models]
    products = [
        _product(each)
        for each, model in zip(compiled, models, strict=True)
        if read_precision(each, multiplying_operators(model)).layers == {precision: 1}
    ]
    return products[0] if len(products) == 1 else min(products, key=_second_run_s, default=None)


def _float_matmul(ov: Any, opset: Any, shape: tuple[int, int, int]) -> Any:
    rows, inner, columns = shape
    x, weight = opset.parameter([rows, inner], np.float32), np.ones((inner, columns), np.float32)
    return ov.Model([opset.matmul(x, opset.constant(weight), transpose_a=False, transpose_b=False)], [x], "matmul")


def _int8_matmul(ov: Any, opset: Any, shape: tuple[int, int, int]) -> Any:
    rows, inner, columns = shape
    x = opset.parameter([rows, inner], np.float32)
    weight = _int8_weight(opset, (inner, columns))
    product = opset.matmul(_quantized(opset, x), weight, transpose_a=False, transpose_b=False)
    return ov.Model([product], [x], "matmul")


def _int8_convolution(ov: Any, opset: Any, shape: tuple[int, int, int]) -> Any:
    """Return the same product as a convolution, between Transposes that move nothing."""
    rows, inner, columns = shape
    x = opset.parameter([rows, inner], np.float32)
    first = opset.transpose(opset.unsqueeze(_quantized(opset, x), 0), [0, 2, 1])
    product = opset.convolution(first, _int8_weight(opset, (columns, inner, 1)), [1], [0], [0], [1])
    return ov.Model([opset.squeeze(opset.transpose(product, [0, 2, 1]), 0)], [x], "convolution")


def _quantized(opset: Any, x: Any) -> Any:
    return opset.fake_quantize(x, -1.28, 1.27, -1.28, 1.27, 256)  # 0 is 128, a whole number


def _int8_weight(opset: Any, shape: tuple[int, ...]) -> Any:
    return opset.multiply(opset.convert(opset.constant(np.ones(shape, np.int8)), "f32"), np.float32(0.01))


def _product(compiled: Any) -> Operations:
    request, feeds = compiled.create_infer_request(), {0: np.ones(compiled.inputs[0].shape, np.float32)}
    return Operations(run=functools.partial(request.infer, feeds, share_inputs=True, share_outputs=True))


def _second_run_s(operations: Operations) -> float:
    """Return the time of a run after the first."""
    operations.run()
    start_s = time.perf_counter()
    operations.run()
    return time.perf_counter() - start_s
