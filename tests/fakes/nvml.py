"""Fake NVML: a library of Python functions that fill ctypes arguments, for a server with several GPUs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SUCCESS, NOT_SUPPORTED = 0, 3
UNSIGNED_LONG_LONG = 3


@dataclass
class FakeGpu:
    """The state of one GPU; None where its driver does not report a quantity."""

    uuid: str
    name: str = "NVIDIA RTX 4000 SFF Ada Generation"
    clocks_mhz: dict[int, int] | None = field(default_factory=lambda: {1: 210, 2: 405})
    temperature_c: int | None = 41
    power_mw: int | None = 8440
    energy_mj: int | None = 4_000_000
    reasons: int | None = 0x1  # idle, which is no limit
    reason_ns: dict[int, int] = field(default_factory=lambda: {74: 4_251_825_415_000, 251: 0, 252: 0})
    pids: tuple[int, ...] | None = ()


class FakeLibrary:
    """The functions of libnvidia-ml. `handle` is the index of a GPU plus 1."""

    def __init__(self, gpus: list[FakeGpu], *, driver: str = "595.84") -> None:
        self.gpus, self.driver, self.is_open = gpus, driver, False

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.is_open = True
        return SUCCESS

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.is_open = False
        return SUCCESS

    def nvmlSystemGetDriverVersion(self, buffer: Any, _size: int) -> int:  # noqa: N802
        buffer.value = self.driver.encode()
        return SUCCESS

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        return _put(count, len(self.gpus))

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        return _put(handle, index + 1)

    def nvmlDeviceGetUUID(self, handle: Any, buffer: Any, _size: int) -> int:  # noqa: N802
        buffer.value = self._gpu(handle).uuid.encode()
        return SUCCESS

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, _size: int) -> int:  # noqa: N802
        buffer.value = self._gpu(handle).name.encode()
        return SUCCESS

    def nvmlDeviceGetClockInfo(self, handle: Any, domain: int, clock: Any) -> int:  # noqa: N802
        clocks = self._gpu(handle).clocks_mhz
        return _put(clock, None if clocks is None else clocks.get(domain))

    def nvmlDeviceGetTemperature(self, handle: Any, _sensor: int, value: Any) -> int:  # noqa: N802
        return _put(value, self._gpu(handle).temperature_c)

    def nvmlDeviceGetPowerUsage(self, handle: Any, value: Any) -> int:  # noqa: N802
        return _put(value, self._gpu(handle).power_mw)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:  # noqa: N802
        return _put(value, self._gpu(handle).energy_mj)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, value: Any) -> int:  # noqa: N802
        return _put(value, self._gpu(handle).reasons)

    def nvmlDeviceGetFieldValues(self, handle: Any, count: int, values: Any) -> int:  # noqa: N802
        times = self._gpu(handle).reason_ns
        for each in values[:count]:
            each.status = SUCCESS if each.field in times else NOT_SUPPORTED
            each.value_type, each.value.unsigned_long = UNSIGNED_LONG_LONG, times.get(each.field, 0)
        return SUCCESS

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, infos: Any) -> int:  # noqa: N802
        pids = self._gpu(handle).pids
        for index, pid in enumerate(pids or ()):
            infos._obj[index].pid = pid
        return _put(count, None if pids is None else len(pids))

    def _gpu(self, handle: ctypes.c_void_p) -> FakeGpu:
        assert self.is_open
        return self.gpus[(handle.value or 0) - 1]


def eight_gpus() -> FakeLibrary:
    """A server. The third GPU runs this process and another one; the others are somebody else's, and throttle."""
    gpus = [FakeGpu(f"GPU-{index}7037c3f-65c8-ec4d-24a9-420204ad8026", reasons=0x40) for index in range(8)]
    gpus[2].reasons, gpus[2].pids = 0x1, (os.getpid(), 1)
    return FakeLibrary(gpus)


def loader(library: FakeLibrary) -> Callable[[str], FakeLibrary]:
    """Return a replacement of `ctypes.CDLL`."""
    return lambda _name: library


def _put(target: Any, value: int | None) -> int:
    if value is None:
        return NOT_SUPPORTED
    target._obj.value = value
    return SUCCESS
