"""DeviceTrace: samples of the device during a measurement, and what they show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevit.errors import UsageError
from edgevit.latency.sampling.channel import UNITS, Channel, Kind

NOBODY = -1  # index of a sample that was taken while no candidate worked: before the warm-up, after the rounds
_CORE = re.compile(r"cpu\d+")
_CAUSES: frozenset[Kind] = frozenset({"throttle", "throttle_time"})  # counters whose rise means a lowered clock


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one channel, one for each sample; None if it gave none."""

    channel: Channel
    values: tuple[float | None, ...]

    def known(self, indices: Sequence[int] | None = None) -> list[float]:
        """Return the values of some samples, or of all, without those that are None."""
        chosen = self.values if indices is None else [self.values[index] for index in indices]
        return [value for value in chosen if value is not None]

    @property
    def rise(self) -> float | None:
        """Difference between the last and the first value of a counter; None with fewer than two values."""
        known = self.known()
        return known[-1] - known[0] if self.channel.counts and len(known) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """A channel that never changed has one number for all samples."""
        constant = len(set(self.values)) == 1 and self.values[0] is not None
        values = self.values[0] if constant else list(self.values)
        return {"name": self.channel.name, "kind": self.channel.kind, "unit": self.channel.unit, "values": values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], count: int) -> Series:
        values = data["values"]
        return cls(
            Channel(data["name"], data["kind"]), tuple(values) if isinstance(values, list) else (values,) * count
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrace:
    """Samples of the device, taken while an engine worked and nothing was timed.

    Raises UsageError if the fields contradict each other.
    """

    names: tuple[str, ...]  # the candidates
    starts_ns: tuple[int, ...]  # of each sample, from the start of the first round
    candidates: tuple[int, ...]  # index of the candidate that worked meanwhile, or NOBODY
    costs_ms: tuple[float, ...]  # time that the sampler took for each sample
    series: tuple[Series, ...]
    problem: str = ""  # why sampling stopped early; empty if it did not

    def __post_init__(self) -> None:
        count = len(self.starts_ns)
        if not count == len(self.candidates) == len(self.costs_ms):
            raise UsageError("device trace: starts, candidates and costs must have the same length")
        if not all(isinstance(number, int) for number in (*self.starts_ns, *self.candidates)):
            raise UsageError("device trace: starts and candidates must be integers")
        for series in self.series:
            if len(series.values) != count or series.channel.kind not in UNITS:
                raise UsageError(f"device trace: {series.channel.name} needs a known kind and {count} values")
            if not all(value is None or isinstance(value, int | float) for value in series.values):
                raise UsageError(f"device trace: the values of {series.channel.name} must be numbers or null")

    def samples_of(self, name: str) -> tuple[int, ...]:
        """Return the indices of the samples during which a candidate worked, without those of the warm-up."""
        index = self.names.index(name) if name in self.names else len(self.names)
        pairs = zip(self.candidates, self.starts_ns, strict=True)
        return tuple(sample for sample, (worked, start) in enumerate(pairs) if worked == index and start >= 0)

    def between(self, begin_ns: int, end_ns: int) -> DeviceTrace:
        """Return the samples whose start is in a span of time."""
        kept = [index for index, start in enumerate(self.starts_ns) if begin_ns <= start < end_ns]
        return replace(
            self,
            starts_ns=tuple(self.starts_ns[index] for index in kept),
            candidates=tuple(self.candidates[index] for index in kept),
            costs_ms=tuple(self.costs_ms[index] for index in kept),
            series=tuple(replace(each, values=tuple(each.values[index] for index in kept)) for each in self.series),
        )

    def of_kind(self, *kinds: Kind) -> Iterator[Series]:
        return (series for series in self.series if series.channel.kind in kinds)

    @property
    def rate_hz(self) -> float | None:
        """Samples a second, between the first and the last that were taken while an engine worked."""
        working = [start for start, index in zip(self.starts_ns, self.candidates, strict=True) if index != NOBODY]
        span_s = (working[-1] - working[0]) / 1e9 if working else 0.0
        return (len(working) - 1) / span_s if span_s > 0 else None

    @property
    def cost_ms(self) -> float | None:
        """Median time that one sample takes."""
        return float(np.median(self.costs_ms)) if self.costs_ms else None

    @property
    def throttle_causes(self) -> tuple[str, ...] | None:
        """The counters that rose and the limits that were active while an engine worked; None without any of either."""
        working = [sample for sample, index in enumerate(self.candidates) if index != NOBODY]
        counters, limits = list(self.of_kind(*_CAUSES)), list(self.of_kind("limit"))
        if not working or not (counters or limits):
            return None
        rises = [f"{each.channel.name} +{each.rise:g}{_unit(each.channel)}" for each in counters if each.rise]
        highest = {each.channel.name: max(each.known(working), default=0.0) for each in limits}
        return (*rises, *(f"{name} at {state:g}" for name, state in highest.items() if state))

    def spread(self, name: str, kind: Kind) -> dict[str, tuple[float, float, float]]:
        """Return lowest, median and highest value of each channel of a kind while the candidate `name` worked."""
        samples = self.samples_of(name)
        found = {each.channel.name: each.known(samples) for each in self.of_kind(kind)}
        return {key: (min(known), float(np.median(known)), max(known)) for key, known in found.items() if known}

    def clock_ranges(self, name: str, *, on_gpu: bool, last: int | None = None) -> dict[str, tuple[float, float]]:
        """Return the lowest and the highest clock that mattered to the candidate `name`, in its `last` samples or all.

        For an engine on the processor that is the clock of the fastest core: the others may rest. For one on a GPU it
        is each clock of the GPU and of its memory.
        """
        clocks = list(self.of_kind("clock"))
        cores = [series for series in clocks if _CORE.fullmatch(series.channel.name)]
        samples = self.samples_of(name)[-(last or 0) :]
        if on_gpu:
            found = {each.channel.name: each.known(samples) for each in clocks if each not in cores}
        else:
            rows = [[value for each in cores for value in each.known([sample])] for sample in samples]
            found = {"fastest core": [max(row) for row in rows if row]}
        return {key: (min(known), max(known)) for key, known in found.items() if known}

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "starts_ns": list(self.starts_ns),
            "candidates": list(self.candidates),
            "costs_ms": list(self.costs_ms),
            "rate_hz": self.rate_hz,
            "cost_ms": self.cost_ms,
            "series": [series.to_json() for series in self.series],
            "problem": self.problem,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceTrace:
        starts_ns = tuple(data["starts_ns"])
        return cls(
            names=tuple(data["names"]),
            starts_ns=starts_ns,
            candidates=tuple(data["candidates"]),
            costs_ms=tuple(data["costs_ms"]),
            series=tuple(Series.from_json(each, len(starts_ns)) for each in data["series"]),
            problem=str(data["problem"]),
        )


def _unit(channel: Channel) -> str:
    return f" {channel.unit}" if channel.unit else ""
