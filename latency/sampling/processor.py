"""Channels of the processor: clocks, RAPL energy, throttle counters, and the time of this and other processes."""

from __future__ import annotations

import time
from pathlib import Path

from edgevit.latency import system_files
from edgevit.latency.sampling.channel import Channel, Entry, Source, file_source
from edgevit.latency.system_files import SystemFiles

BUSY, IDLE, STOLEN, OWN = (
    Channel(name, "time") for name in ("cores busy", "cores idle", "cores stolen", "this process")
)


def processor_sources(files: SystemFiles) -> list[Source]:
    """Return the sources of the cores that this process may use; energy is in `energy_sources`."""
    return [_clocks(files), _throttle_counts(files), _times(files), _load(files)]


def energy_sources(files: SystemFiles) -> list[Source]:
    """Return the energy counters of the processor's packages (RAPL); most systems let only root read them."""
    return [
        _energy(files, folder)
        for folder in files.find("sys/class/powercap/intel-rapl:*")
        if folder.name.count(":") == 1  # the others are parts of these
    ]


def _clocks(files: SystemFiles) -> Source:
    usable = system_files.usable_cores()
    return file_source(
        files,
        (
            Entry(Channel(core, "clock"), path, 1e-3)
            for core, path in files.cpus("cpufreq/scaling_cur_freq").items()
            if usable is None or core in usable
        ),
    )


def _throttle_counts(files: SystemFiles) -> Source:
    counters = {
        name: list(files.cpus(f"thermal_throttle/{name}").values()) for name in system_files.THERMAL_THROTTLE_COUNTERS
    }
    present = {name: paths for name, paths in counters.items() if paths}

    def read() -> list[float | None]:
        return [_sum(files, paths) for paths in present.values()]

    return Source(tuple(Channel(name, "throttle") for name in present), read)


def _sum(files: SystemFiles, paths: list[Path]) -> float | None:
    """Return the sum over all cores; None if one of them gives no value."""
    counts = [files.number(path) for path in paths]
    return None if None in counts else sum(count or 0.0 for count in counts)


def _times(files: SystemFiles) -> Source:
    def read() -> list[float | None]:
        times = system_files.cpu_times(files)
        if times is None:
            return [None] * 4
        return [round(value, 3) for value in (times.busy_s, times.idle_s, times.stolen_s, time.process_time())]

    return Source((BUSY, IDLE, STOLEN, OWN), read)


def _load(files: SystemFiles) -> Source:
    return Source((Channel("load", "load"),), lambda: list((system_files.load_average(files) or (None,))[:1]))


def _energy(files: SystemFiles, folder: Path) -> Source:
    """Return a package's energy in J, which goes on where the counter starts again from 0."""
    limit = files.number(folder / "max_energy_range_uj") or 0.0
    last, wrapped = 0.0, 0.0

    def read() -> list[float | None]:
        nonlocal last, wrapped
        counted = files.number(folder / "energy_uj")
        if counted is None:
            return [None]
        if counted < last:
            wrapped += limit
        last = counted
        return [round((wrapped + counted) / 1e6, 6)]

    number = folder.name.partition(":")[2]
    return Source((Channel(f"rapl {number} {files.text(folder / 'name') or 'unnamed'}", "energy"),), read)
