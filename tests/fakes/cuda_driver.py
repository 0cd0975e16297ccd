"""A fake CUDA driver that uses this process's memory, and runs nothing but copies."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from edgevit.runtimes.tensorrt import cuda, cuda_graph

STREAM, GRAPH, READY, EVENT = 7, 11, 13, 17


@dataclass
class Driver:
    """The fake driver's memory, its calls, and the function that fails."""

    refuses: str = ""
    status: int = 901  # the status it returns: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    uuid: bytes = bytes(range(16))
    flags: list[int] = field(default_factory=list)  # of the context
    calls: list[str] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)

    def take(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        self.calls.append(name)
        if name == self.refuses:
            return self.status
        if action := ACTIONS.get(name):
            action(self, *arguments)
        return 0


def _set(place: Any, value: int) -> int:
    place[0] = value
    return value


ACTIONS: dict[str, Callable[..., object]] = {
    "cuDeviceGetAttribute": lambda _, place, attribute, __: _set(place, {75: 8, 76: 7, 18: 1, 16: 14}[attribute]),
    "cuDeviceTotalMem_v2": lambda _, place, __: _set(place, 30 << 30),
    "cuDeviceGetUuid": lambda driver, place, _: ctypes.memmove(place, driver.uuid, 16),
    "cuDriverGetVersion": lambda _, place: _set(place, 12020),
    "cuDevicePrimaryCtxSetFlags_v2": lambda driver, _, flags: driver.flags.append(flags),
    "cuDevicePrimaryCtxGetState": lambda driver, _, place, __: _set(place, (driver.flags or [0])[-1]),
    "cuDevicePrimaryCtxRetain": lambda _, place, __: _set(place, 3),
    "cuStreamCreate": lambda _, place, __: _set(place, STREAM),
    "cuMemGetInfo_v2": lambda _, free, total: [_set(place, size << 30) for place, size in ((free, 5), (total, 8))],
    "cuMemHostAlloc": lambda driver, place, size, _: _set(place, driver.take(size)),
    "cuMemFreeHost": lambda driver, address: driver.memory.pop(address),
    "cuMemAlloc_v2": lambda driver, place, size: _set(place, driver.take(size)),
    "cuMemFree_v2": lambda driver, address: driver.memory.pop(address),
    "cuMemcpyHtoDAsync_v2": lambda _, to, source, size, __: ctypes.memmove(to, source, size),
    "cuMemcpyDtoHAsync_v2": lambda _, to, source, size, __: ctypes.memmove(to, source, size),
    "cuMemcpyDtoDAsync_v2": lambda _, to, source, size, __: ctypes.memmove(to, source, size),
    "cuStreamEndCapture": lambda _, __, place: _set(place, GRAPH),
    "cuEventCreate": lambda _, place, __: _set(place, EVENT),
    "cuEventElapsedTime": lambda _, place, __, ___: _set(place, 0.75),  # type: ignore[arg-type]
    "cuGraphInstantiateWithFlags": lambda _, place, __, ___: _set(place, READY),
}


def fake_driver(driver: Driver) -> SimpleNamespace:
    """Return a library whose functions `driver` answers."""
    functions = {
        name: ctypes.CFUNCTYPE(ctypes.c_int, *types)(lambda *arguments, name=name: driver.answer(name, arguments))
        for name, types in (cuda._CALLS | cuda_graph._CALLS).items()
    }
    return SimpleNamespace(**functions)
