"""Sets of ONNX operators that several modules decide by."""

from __future__ import annotations

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})  # those that int8 quantizes, if their weights are constants
PRODUCTS = LAYERS | {"ConvTranspose", "Einsum"}  # those that sum up products
# Those that only move elements of their first input.
REARRANGING = frozenset({"Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
