"""Pinned memory, CUDA graphs and events.

Functions and constants follow NVIDIA's CUDA Driver API reference; the driver is the one that `cuda.Device` loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgevit.errors import BuildError, InferenceError
from edgevit.runtimes.tensorrt.cuda import Device
from edgevit.types import Array

_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: the GPU uses the host's memory, as on a Jetson
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate memory meanwhile

_Handle = ctypes.c_void_p
_HandlePointer = ctypes.POINTER(_Handle)
_CALLS: dict[str, Sequence[Any]] = {
    "cuMemGetInfo_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)),
    "cuMemHostAlloc": (_HandlePointer, ctypes.c_size_t, ctypes.c_uint),
    "cuMemFreeHost": (_Handle,),
    "cuStreamBeginCapture_v2": (_Handle, ctypes.c_int),
    "cuStreamEndCapture": (_Handle, _HandlePointer),
    "cuGraphInstantiateWithFlags": (_HandlePointer, _Handle, ctypes.c_ulonglong),
    "cuGraphLaunch": (_Handle, _Handle),
    "cuGraphExecDestroy": (_Handle,),
    "cuGraphDestroy": (_Handle,),
    "cuEventCreate": (_HandlePointer, ctypes.c_uint),
    "cuEventRecord": (_Handle, _Handle),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _Handle, _Handle),
    "cuEventDestroy_v2": (_Handle,),
}


def free_memory(device: Device) -> int:
    """Return the number of free bytes on the device."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(device, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def shares_memory(device: Device) -> bool:
    """Whether the device uses the host's memory, as on a Jetson."""
    return bool(device.attribute(_INTEGRATED))


class PinnedMemory:
    """Page-locked host memory, which the GPU copies from and to without a staging copy."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self._device, self._pointer = device, _Handle()
        _call(device, "cuMemHostAlloc", ctypes.byref(self._pointer), max(size_bytes, 1), 0)
        self._bytes = np.ctypeslib.as_array(
            (ctypes.c_uint8 * max(size_bytes, 1)).from_address(self._pointer.value or 0)
        )

    def array(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return an array on the start of the memory; it must not be used after `free`."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self._bytes[:size].view(dtype).reshape(shape)

    def free(self) -> None:
        if self._pointer:
            _call(self._device, "cuMemFreeHost", self._pointer)
        self._pointer = _Handle()


class CapturedGraph:
    """A recorded sequence of kernels and copies, launched with one call instead of one call each."""

    def __init__(self, device: Device, graph: _Handle) -> None:
        self._device, self._graph, self._ready = device, graph, _Handle()
        _call(device, "cuGraphInstantiateWithFlags", ctypes.byref(self._ready), graph, 0)

    def launch(self) -> None:
        """Enqueue the graph on the device's stream. It reads and writes the buffers it was recorded with."""
        _call(self._device, "cuGraphLaunch", self._ready, self._device.stream)

    def free(self) -> None:
        if self._ready:
            _call(self._device, "cuGraphExecDestroy", self._ready)
        if self._graph:
            _call(self._device, "cuGraphDestroy", self._graph)
        self._graph, self._ready = _Handle(), _Handle()


class Stopwatch:
    """Two events on the device's stream: the GPU notes the time when it gets to each."""

    def __init__(self, device: Device) -> None:
        self._device, self._begin, self._end = device, _Handle(), _Handle()
        _call(device, "cuEventCreate", ctypes.byref(self._begin), 0)
        _call(device, "cuEventCreate", ctypes.byref(self._end), 0)

    def start(self) -> None:
        _call(self._device, "cuEventRecord", self._begin, self._device.stream)

    def stop(self) -> None:
        _call(self._device, "cuEventRecord", self._end, self._device.stream)

    def elapsed_ms(self) -> float:
        """Return the time between both events; the stream has to be synchronized. Its resolution is 0.5 us."""
        elapsed_ms = ctypes.c_float()
        _call(self._device, "cuEventElapsedTime", ctypes.byref(elapsed_ms), self._begin, self._end)
        return elapsed_ms.value

    def free(self) -> None:
        for event in (self._begin, self._end):
            if event:
                _call(self._device, "cuEventDestroy_v2", event)
        self._begin, self._end = _Handle(), _Handle()


def capture(device: Device, work: Callable[[], None]) -> CapturedGraph:
    """Record the operations that `work` enqueues on the stream, without running them.

    Raises BuildError, or the error of `work`, if CUDA cannot; the stream is usable all the same.
    """
    graph = _Handle()
    try:
        _call(device, "cuStreamBeginCapture_v2", device.stream, _THREAD_LOCAL)
        try:
            work()
        finally:  # a stream left in capture mode runs nothing
            _call(device, "cuStreamEndCapture", device.stream, ctypes.byref(graph))
        return CapturedGraph(device, graph)
    except (BuildError, InferenceError):
        if graph:
            with contextlib.suppress(BuildError):
                _call(device, "cuGraphDestroy", graph)
        raise


def _call(device: Device, name: str, *arguments: Any) -> None:
    device.call(name, *arguments, types=_CALLS[name])
