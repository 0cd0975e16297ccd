"""Sustained load: one engine runs without a pause until the device has the temperature that it will keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgevit.types import Interval

STEADY_FRACTION = 0.05  # by which the last rate may be below the first
_WINDOWS = 3  # at least: a first, a last and one between them


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedRun:
    """Images in each second of a run, and the clock that mattered, in MHz, at its start and at its end."""

    batch: int
    seconds: tuple[float, ...]  # images per second in each second
    first_clock_mhz: Interval | None = None  # lowest and highest in the first window; None if none is reported
    last_clock_mhz: Interval | None = None
    hottest_c: float | None = None

    @property
    def duration_s(self) -> int:
        return len(self.seconds)

    @property
    def window_s(self) -> int:
        """The first and the last 10 s, or thirds of a run below 30 s."""
        return max(1, min(10, len(self.seconds) // _WINDOWS))

    @property
    def first_per_s(self) -> float:
        return float(np.mean(self.seconds[: self.window_s]))

    @property
    def last_per_s(self) -> float:
        return float(np.mean(self.seconds[-self.window_s :]))

    @property
    def change(self) -> float:
        """The last rate over the first: 0.9 is 10 % slower at the end."""
        return self.last_per_s / self.first_per_s

    @property
    def steady(self) -> bool:
        return abs(self.change - 1) <= STEADY_FRACTION

    def to_json(self) -> dict[str, Any]:
        derived = {
            "duration_s": self.duration_s,
            "window_s": self.window_s,
            "first_per_s": self.first_per_s,
            "last_per_s": self.last_per_s,
            "change": self.change,
            "steady": self.steady,
        }
        return {**asdict(self), **derived}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SustainedRun:
        clocks = [data[name] for name in ("first_clock_mhz", "last_clock_mhz")]
        first, last = (None if each is None else Interval(float(each["low"]), float(each["high"])) for each in clocks)
        return cls(
            batch=int(data["batch"]),
            seconds=tuple(map(float, data["seconds"])),
            first_clock_mhz=first,
            last_clock_mhz=last,
            hottest_c=None if data["hottest_c"] is None else float(data["hottest_c"]),
        )
