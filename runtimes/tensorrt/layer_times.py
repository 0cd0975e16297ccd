"""Layer times from TensorRT's profiler."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgevit.errors import InferenceError, MeasureError
from edgevit.runtimes.layer_profile import (
    PROFILE_WARMUP,
    UNKNOWN_MODULE,
    LayerProfile,
    LayerTime,
    layer_profile,
    node_module,
)
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.api import IExecutionContext
from edgevit.runtimes.tensorrt.versions import TensorRtModule

_NODES = re.compile(r"[^\s+,(){}\[\]]+/[^\s+,(){}\[\]]*")  # node names within the name of a fused layer


def profile_context(
    trt: TensorRtModule,
    context: IExecutionContext,
    device: cuda.Device,
    kinds: Mapping[str, str],
    *,
    runs: int,
) -> LayerProfile:
    """Run a context with a profiler; `kinds` are the kinds of its layers by name.

    Raises InferenceError if a run fails, MeasureError if TensorRT reports no layer.
    """
    reported: list[LayerTime] = []

    def report(name: str, ms: float) -> None:
        reported.append(LayerTime(name=name, kind=kinds.get(name, "unknown"), module=layer_module(name), ms=ms))

    context.profiler = profiler(trt, report)
    layers, runs_ms = [], []
    for number in range(PROFILE_WARMUP + runs):
        reported.clear()
        start = time.perf_counter()
        if not context.execute_async_v3(device.stream):
            raise InferenceError("TensorRT failed to run the profiled engine; leave --layers out")
        device.synchronize()
        if number >= PROFILE_WARMUP:
            layers.append(list(reported))
            runs_ms.append(1e3 * (time.perf_counter() - start))
    if not layers[0]:
        raise MeasureError("TensorRT reported no layers to its profiler; leave --layers out")
    return layer_profile(layers, runs_ms)


def profiler(trt: TensorRtModule, report: Callable[[str, float], None]) -> Any:
    """Return a profiler of TensorRT's that passes each layer on."""

    class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # the bindings require it

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()


def layer_module(name: str) -> str:
    """Return the module of the first node in the name of a layer, such as "blocks.0.fc/MatMul + blocks.0.act/Relu"."""
    modules = [node_module(node) for node in _NODES.findall(name)]
    return next((module for module in modules if module != UNKNOWN_MODULE), UNKNOWN_MODULE)
