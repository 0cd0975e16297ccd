"""Channels: quantities of the device that are read again and again during a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgevit.latency.system_files import SystemFiles

Kind: TypeAlias = Literal[
    "clock",
    "temperature",
    "power",
    "energy",
    "limit",
    "throttle",
    "throttle_time",
    "spikes",
    "time",
    "load",
    "utilization",
    "processes",
    "fan",
    "mode",
]
UNITS: dict[Kind, str] = {
    "clock": "MHz",
    "temperature": "C",
    "power": "W",
    "energy": "J",
    "limit": "",  # state of a limit of a clock; 0 if it is not active
    "throttle": "",  # events that lowered a clock
    "throttle_time": "ms",  # for which a clock was lowered
    "spikes": "",  # over-current events too short to lower a clock
    "time": "s",
    "load": "",
    "utilization": "%",
    "processes": "",
    "fan": "",  # as the driver reports it: PWM steps or revolutions per minute
    "mode": "",
}
COUNTERS: frozenset[Kind] = frozenset({"energy", "throttle", "throttle_time", "spikes", "time"})  # they never fall


@dataclass(frozen=True, slots=True)
class Channel:
    """A quantity of the device; its kind decides the unit."""

    name: str
    kind: Kind

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    @property
    def counts(self) -> bool:
        return self.kind in COUNTERS


@dataclass(frozen=True, slots=True)
class Source:
    """Channels that are read together. `read` returns one value each, None for one that gives none this time.

    `exists` tells which channels are there, if that is not the same as to give a value now.
    """

    channels: tuple[Channel, ...]
    read: Callable[[], Sequence[float | None]]
    exists: Callable[[], Sequence[bool]] | None = None

    def kept(self) -> Source | None:
        """Return the source without the channels that are not there; None if none is left."""
        there = [value is not None for value in self.read()] if self.exists is None else self.exists()
        present = [index for index, is_there in enumerate(there) if is_there]
        if len(present) == len(self.channels):
            return self if present else None
        if not present:
            return None
        read = self.read

        def read_present() -> list[float | None]:
            values = read()
            return [values[index] for index in present]

        return Source(tuple(self.channels[index] for index in present), read_present)


@dataclass(frozen=True, slots=True)
class Entry:
    """A channel in a file of its own; the file's number times `scale` is in the channel's unit."""

    channel: Channel
    path: Path
    scale: float = 1.0


def file_source(files: SystemFiles, entries: Iterable[Entry]) -> Source:
    """Return a source of files that each hold one number."""
    listed = tuple(entries)

    def read() -> list[float | None]:
        return [_scaled(files.number(entry.path), entry.scale) for entry in listed]

    return Source(tuple(entry.channel for entry in listed), read)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else round(value * scale, 6)
