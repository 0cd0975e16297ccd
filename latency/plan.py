"""MeasurePlan: warm-up, rounds, limits and sampling of a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevit.errors import UsageError
from edgevit.latency import statistics
from edgevit.latency.sampling.sampler import INTERVAL_S

_WARMUP_FRACTION = 0.25  # fraction of `max_total_s` for the warm-ups of all candidates together


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePlan:
    """How to measure. Raises UsageError if the values contradict each other.

    Warm-up: windows of at least `warmup_window_runs` runs and `warmup_window_s` seconds, until the medians of the
    last three are within `warmup_tolerance` of the middle one, or until `warmup_max_s` seconds have passed. Then for at
    most `clock_settle_s` seconds until the last samples of the clock that matters agree as well.

    Rounds: each candidate takes one turn per round, in an order drawn from `seed`. A turn starts with unrecorded runs
    for `settle_s` seconds, at least one, so that caches and spinning threads of the previous candidate no longer
    matter; an inference of a second or more needs none. The recorded runs follow: as many as fill `turn_s` seconds at
    the pace of the warm-up. The number is the same in every turn, so that a round in which the machine was slow has
    the same weight as any other.

    End: when all minimums are met (`min_rounds` rounds; of every candidate `min_runs` samples and `min_duration_s`
    seconds of them), or at `max_duration_s` seconds times the number of candidates, or at `max_total_s` seconds. If the
    ratio of a candidate to the first is undecided when the minimums are met, and its interval is wide, the rounds
    continue within these limits, up to `extension` times as many. At least one round is run, so a single slow round may
    exceed a limit.

    Device: its sensors are read every `sample_interval_s` seconds at most, during unrecorded runs. If it has energy
    counters, its power is measured for `idle_s` seconds before the warm-up.
    """

    min_runs: int = 100
    min_rounds: int = 2 * statistics.MIN_ROUNDS
    min_duration_s: float = 3.0
    max_duration_s: float = 120.0
    max_total_s: float | None = None  # warm-up included; None for no such limit
    warmup_window_runs: int = 5
    warmup_window_s: float = 0.1
    warmup_tolerance: float = 0.05
    warmup_max_s: float = 20.0
    settle_s: float = 0.02
    turn_s: float = 0.05
    seed: int = 0
    sample_interval_s: float = INTERVAL_S
    idle_s: float = 1.0
    clock_settle_s: float = 3.0
    extension: float = 1.0

    def __post_init__(self) -> None:
        if min(self.min_runs, self.min_rounds, self.warmup_window_runs) < 1:
            raise UsageError("min_runs, min_rounds and warmup_window_runs must be at least 1")
        if not 0 <= self.min_duration_s <= self.max_duration_s < math.inf:
            raise UsageError(
                "durations must be finite, with 0 <= min_duration_s <= max_duration_s; got "
                f"{self.min_duration_s:g} and {self.max_duration_s:g}"
            )
        times = (
            *(self.warmup_window_s, self.warmup_tolerance, self.warmup_max_s, self.settle_s, self.turn_s),
            *(self.sample_interval_s, self.idle_s, self.clock_settle_s),
        )
        if not all(0 <= time < math.inf for time in times):
            raise UsageError("times and tolerances of a measurement must be finite and not negative")
        if not 1 <= self.extension < math.inf:
            raise UsageError(f"extension must be a finite factor of at least 1, not {self.extension:g}")
        if self.max_total_s is not None and not 0 < self.max_total_s < math.inf:
            raise UsageError(f"the time for a measurement must be finite and above 0, not {self.max_total_s:g}")

    @property
    def confidence(self) -> float:
        """Confidence of one interval: 99 % hold for the two of a measurement that may be extended (statistics.py)."""
        return 1 - (1 - statistics.CONFIDENCE) / (2 if self.extension > 1 else 1)

    def warmup_limit_s(self, candidates: int) -> float:
        """Return the seconds that the warm-up of each candidate may take."""
        if self.max_total_s is None:
            return self.warmup_max_s
        return min(self.warmup_max_s, _WARMUP_FRACTION * self.max_total_s / candidates)

    def rounds_limit_s(self, candidates: int, *, elapsed_s: float) -> float:
        """Return the seconds that the rounds of all candidates may take after a warm-up of `elapsed_s`."""
        limit_s = self.max_duration_s * candidates
        return limit_s if self.max_total_s is None else max(0.0, min(limit_s, self.max_total_s - elapsed_s))
