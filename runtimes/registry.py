"""The runtimes by format. A new one is one file beside this one, one line in `_RUNTIMES`, and one extra."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from edgevit.errors import MissingError, unknown_name
from edgevit.runtimes.base import Engine, OnPhase, Runtime
from edgevit.runtimes.bundle import Bundle

# format: file and class
_RUNTIMES = {
    "onnx": ("onnxruntime", "OnnxFile"),
    "ort": ("onnxruntime", "OnnxRuntime"),
    "openvino": ("openvino", "OpenVino"),
    "trt": ("tensorrt", "TensorRt"),
    "trt-rtx": ("tensorrt_rtx", "TensorRtRtx"),
}
ALIASES = {
    "onnxruntime": "ort",
    "ov": "openvino",
    "tensorrt": "trt",
    "engine": "trt",
}
FORMATS = tuple(_RUNTIMES)


def resolve_format(name: str) -> str:
    """The format that a name or an alias means. Raises UsageError with near misses."""
    fmt = ALIASES.get(name.lower(), name.lower())
    if fmt not in _RUNTIMES:
        raise unknown_name("runtime", name, (*_RUNTIMES, *ALIASES))
    return fmt


def get_runtime(name: str, on_phase: OnPhase | None = None) -> Runtime:
    """The runtime of a format or an alias; nothing is loaded yet. `on_phase` is told how far its builds are.

    Raises UsageError with near misses.
    """
    file, cls = _RUNTIMES[resolve_format(name)]
    runtime: Runtime = getattr(importlib.import_module(f"edgevit.runtimes.{file}"), cls)(on_phase)
    return runtime


def open_engine(bundle: Bundle, *, threads: int | None = None, cache_dir: Path | None = None) -> Engine:
    """The engine of a bundle. Raises MissingError where it has yet to be built on the device."""
    if bundle.engine_path is None:
        raise MissingError(f"{bundle.name} holds no engine yet; on the device: edgevit build {bundle.path}")
    options = replace(bundle.options, threads=threads, cache_dir=cache_dir)
    return get_runtime(bundle.fmt).open(bundle.engine_path, options)
