"""Channels of a board, from the files of its kernel: a Jetson has most of them, a server a few.

Paths of a Jetson follow NVIDIA's kernel for L4T: the GPU is a devfreq device, INA3221 sensors measure the rails, and
`soctherm_oc` counts over-current.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgevit.latency.sampling.channel import Channel, Entry, Kind, Source, file_source
from edgevit.latency.system_files import SPIKES, SystemFiles, cooling_devices, temperature_c, temperature_files

_EMC_RATE = "sys/kernel/debug/bpmp/debug/clk/emc/rate"  # of a Jetson's memory; only root may read it
_POWER_MODE = "var/lib/nvpmodel/status"  # "pmode:0002 fmode:quiet"
_RAILS = ("ina3221",)  # current sensors whose voltage and current give the power of a rail


def board_sources(files: SystemFiles) -> list[Source]:
    """Return the sources that this board has."""
    others = file_source(files, [*_limits(files), *_over_current(files), *_fans(files)])
    return [file_source(files, _clocks(files)), _temperatures(files), others, _rails(files), _power_mode(files)]


def _clocks(files: SystemFiles) -> Iterator[Entry]:
    for folder in files.find("sys/class/devfreq/*"):
        yield Entry(Channel(folder.name, "clock"), folder / "cur_freq", 1e-6)
        yield Entry(Channel(f"{folder.name} busy", "utilization"), folder / "device/load", 0.1)  # in thousandths
    yield Entry(Channel("emc", "clock"), files.root / _EMC_RATE, 1e-6)


def _temperatures(files: SystemFiles) -> Source:
    """Return the temperatures; a sensor that is off now may be on when the device works."""
    found = temperature_files(files)
    return Source(
        tuple(Channel(name, "temperature") for name in found),
        lambda: [temperature_c(files, path) for path in found.values()],
        exists=lambda: [files.number(path) is not None for path in found.values()],
    )


def _limits(files: SystemFiles) -> Iterator[Entry]:
    for name, path in cooling_devices(files).items():
        yield Entry(Channel(name, "limit"), path)


def _over_current(files: SystemFiles) -> Iterator[Entry]:
    for path in files.find("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        kind: Kind = "spikes" if path.name in SPIKES else "throttle"
        yield Entry(Channel(path.name, kind), path)


def _fans(files: SystemFiles) -> Iterator[Entry]:
    for path in (*files.find("sys/class/hwmon/hwmon*/fan*_input"), *files.find("sys/class/hwmon/hwmon*/pwm[0-9]")):
        yield Entry(Channel(f"{files.text(path.parent / 'name')} {path.name.removesuffix('_input')}", "fan"), path)


def _rails(files: SystemFiles) -> Source:
    """Return the power of each rail: millivolts times milliamperes."""
    rails = [
        (files.text(label) or label.name, label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
        for label in files.find("sys/class/hwmon/hwmon*/in*_label")
        if files.text(label.parent / "name") in _RAILS and (number := label.name[2:].removesuffix("_label"))
    ]

    def read() -> list[float | None]:
        found: list[float | None] = []
        for _, voltage, current in rails:
            millivolts, milliamperes = files.number(voltage), files.number(current)
            known = millivolts is not None and milliamperes is not None
            found.append(round((millivolts or 0.0) * (milliamperes or 0.0) / 1e6, 6) if known else None)
        return found

    return Source(tuple(Channel(name, "power") for name, _, _ in rails), read)


def _power_mode(files: SystemFiles) -> Source:
    def read() -> list[float | None]:
        found = re.search(r"pmode:(\d+)", files.text(_POWER_MODE) or "")
        return [float(found[1]) if found else None]

    return Source((Channel("nvpmodel", "mode"),), read)
