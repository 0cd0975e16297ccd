"""Skip marks for packages that the everyday suite does without."""

from __future__ import annotations

import importlib.util

import pytest

needs_no_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed: this machine may build engines"
)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed here (228 MB, Linux x86): pip install 'edgevit[trt-rtx]'",
)
