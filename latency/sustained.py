"""Sustained load: one engine runs without a pause until the device has the temperature that it will keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.errors import MeasureError
from edgevit.latency import clock
from edgevit.latency.candidate import Candidate, timed
from edgevit.latency.sampling.sampler import device_sampler
from edgevit.latency.sampling.trace import DeviceTrace
from edgevit.runtimes.base import GPU_UUID
from edgevit.types import Interval

MIN_S = 3.0
_INTERVAL_S = 0.5  # between readings of the device, during which the engine goes on

STEADY_FRACTION = 0.05  # largest difference between the first and the last rate of a steady run
_WINDOWS = 3  # at least: a first, a last and one between them


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedRun:
    """Images in each second of a run, and the clock that mattered, in MHz, at its start and at its end."""

    batch: int
    images_per_s: tuple[float, ...]  # in each second
    first_clock_mhz: Interval | None = None  # lowest and highest in the first window; None if none is reported
    last_clock_mhz: Interval | None = None
    hottest_c: float | None = None

    @property
    def duration_s(self) -> int:
        return len(self.images_per_s)

    @property
    def window_s(self) -> int:
        """The first and the last 10 s, or thirds of a run below 30 s."""
        return max(1, min(10, len(self.images_per_s) // _WINDOWS))

    @property
    def first_per_s(self) -> float:
        return float(np.mean(self.images_per_s[: self.window_s]))

    @property
    def last_per_s(self) -> float:
        return float(np.mean(self.images_per_s[-self.window_s :]))

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
        fields = asdict(self)
        return {"batch": fields.pop("batch"), "seconds": fields.pop("images_per_s"), **fields, **derived}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SustainedRun:
        clocks = [data[name] for name in ("first_clock_mhz", "last_clock_mhz")]
        first, last = (None if each is None else Interval(float(each["low"]), float(each["high"])) for each in clocks)
        return cls(
            batch=int(data["batch"]),
            images_per_s=tuple(map(float, data["seconds"])),
            first_clock_mhz=first,
            last_clock_mhz=last,
            hottest_c=None if data["hottest_c"] is None else float(data["hottest_c"]),
        )


def run_sustained(
    candidate: Candidate, seconds: float, *, on_second: Callable[[float], None] | None = None, root: Path = Path("/")
) -> SustainedRun:
    """Run a candidate without a pause and count its images in each second; an inference counts where it ends.

    The device is read meanwhile. Raises MeasureError as soon as a second has passed in which none ended.
    """
    gpus = {candidate.details.get(GPU_UUID, "")}
    with device_sampler((candidate.name,), gpu_uuids=gpus, interval_s=_INTERVAL_S, root=root) as sampler:
        start_ns = clock.now_ns()
        counts = [0] * int(seconds)
        shown = latest = -1
        while (second := (clock.now_ns() - start_ns) // 1_000_000_000) < len(counts):
            sampler.request(0)
            begin_ns, duration_ns, _ = timed(candidate.name, candidate.infer)
            ended = min((begin_ns + duration_ns - start_ns) // 1_000_000_000, len(counts))
            if ended > latest + 1:  # the rest of the run cannot change that
                raise MeasureError(f"{candidate.name} ran less than once a second; --sustained needs a faster engine")
            latest = ended
            if ended < len(counts):
                counts[ended] += 1
            if on_second is not None and second != shown:
                on_second((second + 1) / len(counts))
                shown = second
        trace = sampler.trace(start_ns)
    rates = tuple(float(candidate.batch * count) for count in counts)
    run = SustainedRun(batch=candidate.batch, images_per_s=rates)
    window_ns, whole_ns = 10**9 * run.window_s, 10**9 * len(counts)
    first = _clock_range(trace, candidate, 0, window_ns)
    last = _clock_range(trace, candidate, whole_ns - window_ns, whole_ns)
    spread = {} if trace is None else trace.spread(candidate.name, "temperature")
    hottest_c = max((high for _, _, high in spread.values()), default=None)
    return SustainedRun(
        batch=run.batch, images_per_s=rates, first_clock_mhz=first, last_clock_mhz=last, hottest_c=hottest_c
    )


def _clock_range(trace: DeviceTrace | None, candidate: Candidate, begin_ns: int, end_ns: int) -> Interval | None:
    """Return the clock of the GPU, or of the fastest core, in a part of a run; None if none was read."""
    if trace is None:
        return None
    ranges = trace.between(begin_ns, end_ns).clock_ranges(candidate.name, on_gpu=candidate.uses_gpu)
    return next((Interval(low, high) for low, high in ranges.values()), None)
