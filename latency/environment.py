"""Describe the machine a measurement was taken on.

`Environment` has the properties that must be equal for two measurements to be comparable; `MachineState` has those that
change while the machine works. A field is None or empty if the system does not report it. Versions of packages are read
from their metadata, without importing them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevit.formats import list_formats
from edgevit.latency import system_files
from edgevit.latency.sampling.nvml import nvml_session
from edgevit.latency.system_files import SystemFiles

# Packages other than the runtimes of formats, which `Format.packages` adds. PyTorch is measured like a runtime.
_LIBRARIES = ("numpy", "torch", "onnx")
_REFERENCE = "torch"

# Fields that decide a latency, together with the versions of the runtimes. Memory, kernel and momentary state do not.
_KEY_FIELDS = (
    *("architecture", "board", "cpu", "isa", "physical_cores", "logical_cores", "affinity", "cpu_limit"),
    *("governor", "min_mhz", "max_mhz", "boost", "power_mode", "gpus", "device_clocks", "jetson"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """State of the machine at one moment; captured before and after a measurement."""

    load_average: tuple[float, ...] | None  # over 1, 5 and 15 minutes
    memory_available_mb: float | None
    clocks_mhz: Mapping[str, float]  # by core ("cpu0") or device
    temperatures_c: Mapping[str, float]
    throttle_events: Mapping[str, int]  # counters, which never fall
    limits: Mapping[str, int]  # active limits of a clock; 0 if the limit is not active
    own_cpu_s: float  # processor time of this process
    busy_cpu_s: float | None  # time that any process ran on the cores of this process, stolen time included
    idle_cpu_s: float | None
    time_s: float | None = None  # of a clock that never goes back; only differences mean something

    @classmethod
    def capture(cls, root: Path = Path("/")) -> MachineState:
        """Return the current state, without NVIDIA GPUs: a DeviceTrace has those that the measurement uses.

        `root` is the folder that holds the system's files.
        """
        files = SystemFiles(root)
        times = system_files.cpu_times(files)
        return cls(
            load_average=system_files.load_average(files),
            memory_available_mb=system_files.memory_mb(files, "MemAvailable"),
            clocks_mhz=system_files.current_clocks_mhz(files),
            temperatures_c=system_files.temperatures_c(files),
            throttle_events=system_files.throttle_events(files),
            limits=system_files.clock_limits(files),
            own_cpu_s=time.process_time(),
            busy_cpu_s=None if times is None else times.busy_s,
            idle_cpu_s=None if times is None else times.idle_s,
            time_s=time.monotonic(),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MachineState:
        load = data["load_average"]
        return cls(**{**data, "load_average": tuple(load) if load is not None else None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine, its settings and the installed packages. `state` was captured at the same time."""

    architecture: str
    board: str | None
    os: str
    kernel: str
    cpu: str | None
    isa: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int | None
    affinity: tuple[int, ...] | None  # the cores that this process may use
    cpu_limit: float | None  # CPU quota of the control group, in cores; None if there is no limit
    governor: str | None
    min_mhz: float | None
    max_mhz: float | None
    boost: bool | None
    power_mode: str | None  # of nvpmodel on a Jetson, else the platform profile of the firmware
    gpus: tuple[str, ...]  # NVIDIA GPUs with their driver
    device_clocks: Mapping[str, str]  # governor and clock range of devfreq devices, for example a Jetson's GPU
    jetson: str | None  # the L4T release
    container: str | None
    memory_total_mb: float | None
    python: str
    packages: Mapping[str, str]
    state: MachineState
    jetpack: str | None = None  # version of the package nvidia-jetpack

    @classmethod
    def capture(cls, root: Path = Path("/")) -> Environment:
        """Return the environment of this process. `root` is the folder that holds the system's files."""
        files = SystemFiles(root)
        min_mhz, max_mhz = system_files.clock_range_mhz(files)
        return cls(
            architecture=platform.machine(),
            board=system_files.board(files),
            os=system_files.os_name(files),
            kernel=platform.release(),
            cpu=system_files.cpu_model(files),
            isa=system_files.instruction_sets(files),
            physical_cores=system_files.physical_cores(files),
            logical_cores=os.cpu_count(),
            affinity=system_files.affinity(),
            cpu_limit=system_files.cpu_limit(files),
            governor=system_files.governor(files),
            min_mhz=min_mhz,
            max_mhz=max_mhz,
            boost=system_files.boost(files),
            power_mode=system_files.power_mode(files),
            gpus=_gpu_names(),
            device_clocks=system_files.device_clocks(files),
            jetson=system_files.jetson_release(files),
            container=system_files.container(files),
            memory_total_mb=system_files.memory_mb(files, "MemTotal"),
            python=platform.python_version(),
            packages=_package_versions(),
            state=MachineState.capture(root),
            jetpack=system_files.jetpack_version(files),
        )

    def key(self) -> dict[str, object]:
        """Return the fields on which two measurements must agree before their times are compared."""
        return {
            **{name: getattr(self, name) for name in _KEY_FIELDS},
            **{name: self.packages.get(name) for name in (_REFERENCE, *_runtime_packages())},
        }

    def differences(self, other: Environment) -> tuple[str, ...]:
        """Return the fields that forbid a comparison, one line each; empty if the two compare."""
        others = other.key()
        return tuple(
            f"{name}: {value} here, {others[name]} there" for name, value in self.key().items() if value != others[name]
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Environment:
        affinity = data["affinity"]
        return cls(
            **{
                **data,
                "isa": tuple(data["isa"]),
                "affinity": tuple(affinity) if affinity is not None else None,
                "gpus": tuple(data["gpus"]),
                "state": MachineState.from_json(data["state"]),
            }
        )


@dataclass(frozen=True, slots=True)
class EventRise:
    """The rise of a throttle counter between two states."""

    count: int
    per_s: float | None  # None if the time between the states is unknown


def event_rises(before: MachineState, after: MachineState) -> dict[str, EventRise]:
    """Return the rise of each counter that both states have, by name."""
    elapsed_s = None if before.time_s is None or after.time_s is None else after.time_s - before.time_s
    rises = {
        name: count - before.throttle_events[name]
        for name, count in after.throttle_events.items()
        if name in before.throttle_events
    }
    return {name: EventRise(count, count / elapsed_s if elapsed_s else None) for name, count in rises.items()}


def throttle_causes(before: MachineState, after: MachineState) -> tuple[str, ...] | None:
    """Return the counters that rose and the limits that were active, with their values; None without any of either.

    Over-current spikes (OC3 of a Jetson) lower no clock and are no cause.
    """
    counters = {
        name: rise.count for name, rise in event_rises(before, after).items() if name not in system_files.SPIKES
    }
    if not counters and not before.limits and not after.limits:
        return None
    limits = {name: max(state, before.limits.get(name, 0)) for name, state in {**before.limits, **after.limits}.items()}
    return (
        *(f"{name} +{count}" for name, count in counters.items() if count > 0),
        *(f"{name} at {state}" for name, state in limits.items() if state),
    )


def others_fraction(before: MachineState, after: MachineState) -> float | None:
    """Return the fraction of this process's cores that other processes used in between; None if unknown."""
    if None in (before.busy_cpu_s, before.idle_cpu_s, after.busy_cpu_s, after.idle_cpu_s):
        return None
    busy_s = (after.busy_cpu_s or 0.0) - (before.busy_cpu_s or 0.0)
    total_s = busy_s + (after.idle_cpu_s or 0.0) - (before.idle_cpu_s or 0.0)
    others_s = busy_s - (after.own_cpu_s - before.own_cpu_s)
    return min(1.0, max(0.0, others_s / total_s)) if total_s > 0 else None


def _gpu_names() -> tuple[str, ...]:
    """Return the name and the driver version of each NVIDIA GPU that this process may see."""
    with nvml_session() as nvml:
        if nvml is None:
            return ()
        return tuple(f"{gpu.name or 'unknown'}, driver {nvml.driver or 'unknown'}" for gpu in nvml.gpus())


def _runtime_packages() -> dict[str, tuple[str, ...]]:
    """Return the distributions that provide each runtime, by the name of the first."""
    return {entry.package: entry.packages for entry in list_formats()}


def _package_versions() -> dict[str, str]:
    versions = {}
    for package, names in {**{name: (name,) for name in _LIBRARIES}, **_runtime_packages()}.items():
        for name in names:
            try:
                versions[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions
