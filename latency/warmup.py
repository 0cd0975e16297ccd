"""Warm-up: run a candidate until its pace, and the clock that matters to it, are steady."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevit.latency import clock, statistics
from edgevit.latency.candidate import Candidate, require_valid_outputs, timed
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.sampling.sampler import Sampler

_CLOCK_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """The end of a warm-up."""

    runs: int
    steady: bool
    clock_steady: bool | None  # None if the device reports no clock that matters
    median_ns: float  # of the last window


def warm_up(candidate: Candidate, plan: MeasurePlan, *, max_s: float, sampler: Sampler, index: int) -> Warmup:
    """Run until the last three windows agree, or for `max_s` seconds, but at least once.

    Then the clock may take `plan.clock_settle_s` seconds more. `index` is the candidate's number in the sampler.
    """
    begin_ns, runs = clock.now_ns(), 0
    window: list[int] = []
    medians: list[float] = []
    window_start_ns, steady_ns = begin_ns, 0
    while True:
        sampler.request(index, in_turns=False)
        start_ns, duration_ns, outputs = timed(candidate.name, candidate.infer)
        if not runs:
            require_valid_outputs(candidate.name, outputs)
        runs, end_ns = runs + 1, start_ns + duration_ns
        window.append(duration_ns)
        timed_out = end_ns - begin_ns >= 1e9 * max_s
        if len(window) >= plan.warmup_window_runs and end_ns - window_start_ns >= 1e9 * plan.warmup_window_s:
            medians.append(float(np.median(window)))
            window, window_start_ns = [], end_ns
            if steady_ns or statistics.is_steady(medians, plan.warmup_tolerance):
                steady_ns = steady_ns or end_ns
                clock_steady = _clock_is_steady(candidate, plan.warmup_tolerance, sampler)
                waited = end_ns - steady_ns >= 1e9 * plan.clock_settle_s
                if clock_steady is not False or waited or timed_out:
                    return Warmup(runs=runs, steady=True, clock_steady=clock_steady, median_ns=medians[-1])
        if timed_out:
            last_ns = float(np.median(window)) if window else medians[-1]
            clock_steady = _clock_is_steady(candidate, plan.warmup_tolerance, sampler)
            return Warmup(runs=runs, steady=bool(steady_ns), clock_steady=clock_steady, median_ns=last_ns)


def _clock_is_steady(candidate: Candidate, tolerance: float, sampler: Sampler) -> bool | None:
    """Return whether the last samples of each clock that matters agree; None if the device reports none."""
    trace = sampler.trace(0)
    ranges = trace.clock_ranges(candidate.name, on_gpu=candidate.uses_gpu, last=_CLOCK_SAMPLES) if trace else {}
    if trace is None or not ranges:
        return None
    enough = len(trace.samples_of(candidate.name)) >= _CLOCK_SAMPLES
    return enough and all(high - low <= tolerance * high for low, high in ranges.values())
