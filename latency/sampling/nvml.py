"""NVIDIA GPUs by NVML, the library of the driver, called by ctypes: only the GPUs that are requested, by their UUID.

Functions and constants follow NVIDIA's NVML API reference. A function that a GPU or a driver does not support leaves
out its channel and nothing else: a Jetson's library supports few of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from edgevit.latency.sampling.channel import Channel, Source

LIBRARY = "libnvidia-ml.so.1"
GPU_PREFIX = "gpu "  # of the channels and energy counters of a GPU
_SUCCESS = 0
_CORE_TEMPERATURE = 0  # NVML_TEMPERATURE_GPU
_SM, _MEMORY = 1, 2  # NVML_CLOCK_*
# Reasons for a lowered clock other than the user's settings: power cap, hardware slowdown, software and hardware
# thermal slowdown, power brake (nvmlClocksEventReason*).
LIMIT_REASONS = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
# Time for which a reason held, in ns (NVML_FI_DEV_CLOCKS_EVENT_REASON_*).
_REASON_TIMES = {"power cap": 74, "software thermal": 251, "hardware thermal": 252, "power brake": 253}
_UNSIGNED_TYPES = {1: "unsigned", 2: "unsigned_long", 3: "unsigned_long"}  # NVML_VALUE_TYPE_UNSIGNED_*
_MAX_PROCESSES = 64


class _Value(ctypes.Union):
    _fields_ = (("unsigned", ctypes.c_uint), ("unsigned_long", ctypes.c_ulonglong), ("double", ctypes.c_double))


class FieldValue(ctypes.Structure):
    """nvmlFieldValue_t."""

    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("value_type", ctypes.c_int),
        ("status", ctypes.c_int),
        ("value", _Value),
    )


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t of the functions with the suffix v3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Nvml:
    """The library, initialized. `library` is what `ctypes.CDLL` returns; see `open_nvml`."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> bool:
        """Call a function; False if the library lacks it, or the GPU does not support it."""
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == _SUCCESS

    def text(self, name: str, *arguments: Any) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        return buffer.value.decode(errors="replace") if self.call(name, *arguments, buffer, len(buffer)) else None

    def number(self, kind: Any, name: str, *arguments: Any) -> int | None:
        value = kind()
        return int(value.value) if self.call(name, *arguments, ctypes.byref(value)) else None

    def gpus(self) -> Iterator[Gpu]:
        """Yield all GPUs that this process may see."""
        for index in range(self.number(ctypes.c_uint, "nvmlDeviceGetCount_v2") or 0):
            handle = ctypes.c_void_p()
            if self.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)):
                yield Gpu(self, handle)

    @property
    def driver(self) -> str | None:
        return self.text("nvmlSystemGetDriverVersion")

    def close(self) -> None:
        self.call("nvmlShutdown")


class Gpu:
    """One GPU. A method returns None if NVML does not report the quantity for it."""

    def __init__(self, nvml: Nvml, handle: ctypes.c_void_p) -> None:
        self._nvml, self._handle = nvml, handle

    @property
    def uuid(self) -> str | None:
        """For example "GPU-37037c3f-65c8-ec4d-24a9-420204ad8026"."""
        return self._nvml.text("nvmlDeviceGetUUID", self._handle)

    @property
    def name(self) -> str | None:
        return self._nvml.text("nvmlDeviceGetName", self._handle)

    def clock_mhz(self, domain: int) -> float | None:
        return self._nvml.number(ctypes.c_uint, "nvmlDeviceGetClockInfo", self._handle, domain)

    def temperature_c(self) -> float | None:
        return self._nvml.number(ctypes.c_uint, "nvmlDeviceGetTemperature", self._handle, _CORE_TEMPERATURE)

    def power_w(self) -> float | None:
        return _scaled(self._nvml.number(ctypes.c_uint, "nvmlDeviceGetPowerUsage", self._handle), 1e-3)

    def energy_j(self) -> float | None:
        """Return the energy since the driver was loaded."""
        name = "nvmlDeviceGetTotalEnergyConsumption"
        return _scaled(self._nvml.number(ctypes.c_ulonglong, name, self._handle), 1e-3)

    def limit(self) -> float | None:
        """Return the reasons that lower the clock as a bit mask of LIMIT_REASONS; 0 if there is none."""
        name = "nvmlDeviceGetCurrentClocksThrottleReasons"
        reasons = self._nvml.number(ctypes.c_ulonglong, name, self._handle)
        return None if reasons is None else reasons & LIMIT_REASONS

    def limited_ms(self) -> list[float | None]:
        """Return for how long each reason of _REASON_TIMES has held."""
        values = (FieldValue * len(_REASON_TIMES))(*(FieldValue(field=field) for field in _REASON_TIMES.values()))
        if not self._nvml.call("nvmlDeviceGetFieldValues", self._handle, len(values), values):
            return [None] * len(values)
        return [
            round(getattr(each.value, _UNSIGNED_TYPES[each.value_type]) / 1e6, 3)
            if each.status == _SUCCESS and each.value_type in _UNSIGNED_TYPES
            else None
            for each in values
        ]

    def other_processes(self) -> float | None:
        """Return the number of other processes that compute on the GPU.

        None if this process is not among those listed: then it runs in a container, and knows itself by another number.
        """
        count = ctypes.c_uint(_MAX_PROCESSES)
        found = (ProcessInfo * _MAX_PROCESSES)()
        if not self._nvml.call(
            "nvmlDeviceGetComputeRunningProcesses_v3", self._handle, ctypes.byref(count), ctypes.byref(found)
        ):
            return None
        pids = {found[index].pid for index in range(min(count.value, _MAX_PROCESSES))}
        return float(len(pids) - 1) if os.getpid() in pids else None


def open_nvml() -> Nvml | None:
    """Return the driver's library, initialized; None if there is none or it does not work."""
    try:
        nvml = Nvml(ctypes.CDLL(LIBRARY))
    except OSError:
        return None
    return nvml if nvml.call("nvmlInit_v2") else None


@contextlib.contextmanager
def nvml_session() -> Iterator[Nvml | None]:
    """Open the library and close it afterwards."""
    nvml = open_nvml()
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.close()


def gpus_with(nvml: Nvml, uuids: Iterable[str]) -> dict[str, Gpu]:
    """Return the GPUs with these UUIDs, with or without the prefix "GPU-", by UUID."""
    wanted = {_plain(uuid) for uuid in uuids if uuid}
    found = {gpu.uuid or "": gpu for gpu in nvml.gpus()} if wanted else {}
    return {uuid: gpu for uuid, gpu in found.items() if _plain(uuid) in wanted}


def gpu_sources(gpus: dict[str, Gpu]) -> list[Source]:
    """Return the sources of GPUs, by UUID; energy is in `gpu_energy_sources`."""
    return [source for uuid, gpu in gpus.items() for source in _sources(gpu_title(uuid), gpu)]


def gpu_energy_sources(gpus: dict[str, Gpu]) -> list[Source]:
    return [_single(Channel(gpu_title(uuid), "energy"), gpu.energy_j) for uuid, gpu in gpus.items()]


def _sources(title: str, gpu: Gpu) -> Iterator[Source]:
    yield _single(Channel(f"{title} sm", "clock"), lambda: gpu.clock_mhz(_SM))
    yield _single(Channel(f"{title} memory", "clock"), lambda: gpu.clock_mhz(_MEMORY))
    yield _single(Channel(title, "temperature"), gpu.temperature_c)
    yield _single(Channel(title, "power"), gpu.power_w)
    yield _single(Channel(f"{title} reasons", "limit"), gpu.limit)
    yield Source(tuple(Channel(f"{title} {reason}", "throttle_time") for reason in _REASON_TIMES), gpu.limited_ms)
    yield _single(Channel(f"{title} others", "processes"), gpu.other_processes)


def _single(channel: Channel, read: Callable[[], float | None]) -> Source:
    return Source((channel,), lambda: [read()])


def gpu_title(uuid: str) -> str:
    """Return the name of a GPU's channels and energy counter."""
    return f"{GPU_PREFIX}{_plain(uuid)[:8]}"


def _plain(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-")


def _scaled(value: int | None, scale: float) -> float | None:
    return None if value is None else round(value * scale, 6)
