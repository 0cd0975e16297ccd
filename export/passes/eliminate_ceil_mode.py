"""Remove `ceil_mode` from poolings in which it adds no window.

A window that starts after the input is left out by PyTorch and ONNX Runtime, but not by OpenVINO and by ONNX's shape
inference.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.pooling import pool_axes, uses_ceil_mode


def eliminate_ceil_mode(model: ir.Model) -> None:
    """Rewrite each pooling in which no axis keeps a window that `ceil_mode` adds."""
    for node in model.graph:
        if not node.domain and uses_ceil_mode(node) and not any(axis.keeps_partial_window for axis in pool_axes(node)):
            node.attributes.pop("ceil_mode")
