"""What a GPU engine needs of CUDA's driver beyond plain buffers: free memory, page-locked arrays, captured graphs.

Calls and constants by NVIDIA's CUDA Driver API reference, through the driver that `cuda.Device` loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.tensorrt.cuda import Device
from edgevit.types import Array

_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: the GPU works in the host's memory, as on a Jetson
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating

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
}


def free_memory(device: Device) -> int:
    """The bytes that are free on the device."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(device, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def shares_memory(device: Device) -> bool:
    """Whether device and host have one memory, as on a Jetson."""
    return bool(device.attribute(_INTEGRATED))


class PinnedMemory:
    """Page-locked host memory: the only kind that copies run from and to without a stop on the way."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self._device, self._pointer = device, _Handle()
        _call(device, "cuMemHostAlloc", ctypes.byref(self._pointer), max(size_bytes, 1), 0)
        self._bytes = np.ctypeslib.as_array(
            (ctypes.c_uint8 * max(size_bytes, 1)).from_address(self._pointer.value or 0)
        )

    def array(self, shape: tuple[int, ...], dtype: str) -> Array:
        """The start of the memory as an array; it shares the memory and must not outlive it."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self._bytes[:size].view(dtype).reshape(shape)

    def free(self) -> None:
        if self._pointer:
            _call(self._device, "cuMemFreeHost", self._pointer)
        self._pointer = _Handle()


class CapturedGraph:
    """Work that was recorded once and is launched as a whole: one call in place of one a kernel."""

    def __init__(self, device: Device, graph: _Handle) -> None:
        self._device, self._graph, self._ready = device, graph, _Handle()
        _call(device, "cuGraphInstantiateWithFlags", ctypes.byref(self._ready), graph, 0)

    def launch(self) -> None:
        """Puts the work on the device's stream. It reads and writes the memory that it was recorded with."""
        _call(self._device, "cuGraphLaunch", self._ready, self._device.stream)

    def free(self) -> None:
        if self._ready:
            _call(self._device, "cuGraphExecDestroy", self._ready)
        if self._graph:
            _call(self._device, "cuGraphDestroy", self._graph)
        self._graph, self._ready = _Handle(), _Handle()


def capture(device: Device, work: Callable[[], None]) -> CapturedGraph | None:
    """Records what `work` puts on the device's stream, without running it; None where it cannot be recorded."""
    graph = _Handle()
    try:
        _call(device, "cuStreamBeginCapture_v2", device.stream, _THREAD_LOCAL)
        try:
            work()
        finally:  # a stream left in capture would run nothing more
            _call(device, "cuStreamEndCapture", device.stream, ctypes.byref(graph))
        return CapturedGraph(device, graph)
    except BuildError:
        if graph:
            with contextlib.suppress(BuildError):
                _call(device, "cuGraphDestroy", graph)
        return None


def _call(device: Device, name: str, *arguments: Any) -> None:
    device.call(name, *arguments, types=_CALLS[name])
