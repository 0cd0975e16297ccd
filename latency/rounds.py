"""The rounds of a measurement: candidates take turns, in each of which some runs are recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevit.latency import clock
from edgevit.latency.candidate import Candidate, require_valid_outputs, timed
from edgevit.latency.clock import Probe
from edgevit.latency.compare import is_undecided
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.progress import MeasureProgress, OnMeasure
from edgevit.latency.report_warnings import NOTABLE_CHANGE
from edgevit.latency.sampling.energy import rises_j
from edgevit.latency.sampling.sampler import Sampler
from edgevit.latency.sampling.trace import DeviceTrace
from edgevit.latency.statistics import by_round
from edgevit.latency.warmup import Warmup

_PROBE_INTERVAL_NS = 500_000_000
_SAMPLED_BETWEEN_NS = 100_000_000  # a millisecond of waiting changes such an inference by less than 1 %
_POLL_S = 0.0005
_ALONE_S = 2.0  # time that a candidate runs alone
_LONG_INFERENCE_NS = 1_000_000_000  # cold caches change such an inference by far less than 1 %


@dataclass(slots=True)
class Recording:
    """A candidate's samples while they are recorded."""

    candidate: Candidate
    index: int  # in the sampler
    runs_per_turn: int
    settles: bool  # whether a turn starts with unrecorded runs
    sampled_between: bool  # whether the device is sampled between recorded runs too, which are long
    starts_ns: list[int] = field(default_factory=list)
    durations_ns: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    total_ns: int = 0
    compute_ms: list[float | None] = field(default_factory=list)
    turns_j: list[tuple[float, ...]] = field(default_factory=list)
    turns_s: list[float] = field(default_factory=list)
    alone_ns: list[int] = field(default_factory=list)

    def done_fraction(self, plan: MeasurePlan) -> float:
        """Return the fraction of the plan's runs and seconds that is recorded, 0 to 1."""
        runs = len(self.durations_ns) / plan.min_runs
        return min(1.0, runs, self.total_ns / (1e9 * plan.min_duration_s) if plan.min_duration_s else 1.0)


def new_recordings(
    candidates: Sequence[Candidate], warmups: Sequence[Warmup], *, turn_s: float, min_rounds: int, limit_s: float
) -> list[Recording]:
    """Return a recording without samples for each candidate, with the runs of a turn.

    They fill `turn_s`, or less if `min_rounds` would exceed `limit_s`.
    """
    # The second half of the time is for the unrecorded runs.
    turn_s = min(turn_s, limit_s / (2 * min_rounds * len(candidates)))
    return [
        Recording(
            candidate,
            index=index,
            runs_per_turn=max(1, round(1e9 * turn_s / warmup.median_ns)),
            settles=warmup.median_ns < _LONG_INFERENCE_NS,
            sampled_between=warmup.median_ns >= _SAMPLED_BETWEEN_NS,
        )
        for index, (candidate, warmup) in enumerate(zip(candidates, warmups, strict=True))
    ]


def run_rounds(
    recordings: Sequence[Recording], plan: MeasurePlan, limit_s: float, sampler: Sampler, on_progress: OnMeasure
) -> tuple[int, tuple[Probe, ...]]:
    """Run rounds until every candidate has enough samples, or until another round would exceed `limit_s`.

    There is always one round. Returns the start of the first round in ns, and the probes of the machine's speed before,
    between and after the rounds.
    """
    random = np.random.default_rng(plan.seed)
    origin_ns = clock.now_ns()
    probes = [_probe(origin_ns)]
    number, fraction, elapsed_s, round_s, last = 0, 0.0, 0.0, 0.0, math.inf
    while not number or (fraction < 1 and elapsed_s + round_s <= limit_s):
        round_start_ns = clock.now_ns()
        for index in random.permutation(len(recordings)):
            _settle(recordings[index], plan.settle_s, sampler)
            _take_turn(recordings[index], number, origin_ns, sampler)
        number += 1
        now_ns = clock.now_ns()
        elapsed_s, round_s = (now_ns - origin_ns) / 1e9, (now_ns - round_start_ns) / 1e9
        fraction = min(number / plan.min_rounds, *(recording.done_fraction(plan) for recording in recordings))
        if fraction >= 1 and last == math.inf and plan.extension > 1:
            last = math.ceil(number * plan.extension) if _is_undecided(recordings, plan.confidence) else number
        fraction = fraction if last == math.inf else number / last
        if now_ns - origin_ns - probes[-1].start_ns >= _PROBE_INTERVAL_NS:
            probes.append(_probe(origin_ns))
            on_progress(_progress(fraction, elapsed_s, limit_s))
    probes.append(_probe(origin_ns))
    on_progress(MeasureProgress("measuring", 1.0, 0.0))
    return origin_ns, tuple(probes)


def _is_undecided(recordings: Sequence[Recording], confidence: float) -> bool:
    """Return whether the ratio of any candidate to the first needs more rounds."""
    first, *others = (
        [float(np.median(turn)) / each.candidate.batch for turn in by_round(each.durations_ns, each.rounds)]
        for each in recordings
    )
    return any(is_undecided(each, first, confidence) for each in others)


def _progress(fraction: float, elapsed_s: float, limit_s: float) -> MeasureProgress:
    """Return the progress of rounds that end when `fraction` is 1 or `limit_s` has passed."""
    remaining_s = max(0.0, min(elapsed_s * (1 / fraction - 1), limit_s - elapsed_s))
    return MeasureProgress("measuring", elapsed_s / (elapsed_s + remaining_s), remaining_s)


def _settle(recording: Recording, settle_s: float, sampler: Sampler) -> None:
    """Run unrecorded for `settle_s`, which refills the caches of this candidate, and until the sampler is done.

    So the device is sampled while it works, and not while anything is timed.
    """
    name, infer = recording.candidate.name, recording.candidate.infer
    sampler.request(recording.index)
    if not recording.settles:
        _wait_for(sampler)
        return
    settled_ns = clock.now_ns() + round(1e9 * settle_s)
    timed(name, infer)
    while clock.now_ns() < settled_ns or sampler.busy:
        timed(name, infer)


def _wait_for(sampler: Sampler) -> None:
    """Wait until a requested sample is read, if there is one."""
    while sampler.busy:
        time.sleep(_POLL_S)


def _take_turn(recording: Recording, number: int, origin_ns: int, sampler: Sampler) -> None:
    """Record the runs of one turn, and the energy that they take if the device counts it."""
    name, infer = recording.candidate.name, recording.candidate.infer
    counts_energy = bool(sampler.energy_names)
    before_ns, before_j = clock.now_ns(), sampler.energy_j()
    if counts_energy:
        timed(name, infer)  # after the counters were read, the first run would be slower
    for _ in range(recording.runs_per_turn):
        if recording.sampled_between:
            sampler.request(recording.index)
            _wait_for(sampler)
        start_ns, duration_ns, outputs = timed(name, infer)
        require_valid_outputs(name, outputs)
        recording.starts_ns.append(start_ns - origin_ns)
        recording.durations_ns.append(duration_ns)
        recording.rounds.append(number)
        recording.total_ns += duration_ns
        if recording.candidate.compute_ms is not None:
            recording.compute_ms.append(recording.candidate.compute_ms())
    if counts_energy:
        spent_j = rises_j(before_j, sampler.energy_j())
        if spent_j is not None:
            recording.turns_j.append(spent_j)
            recording.turns_s.append((clock.now_ns() - before_ns) / 1e9)


def run_varied_alone(
    recordings: Sequence[Recording], trace: DeviceTrace | None, max_total_s: float | None, begin_ns: int
) -> None:
    """Run those of several candidates alone whose clock changed, as long as `max_total_s` leaves time."""
    if trace is None or len(recordings) < 2:
        return
    for recording in recordings:
        elapsed_s = (clock.now_ns() - begin_ns) / 1e9
        if _clock_varied(recording, trace) and elapsed_s + _ALONE_S <= (max_total_s or math.inf):
            _run_alone(recording)


def _clock_varied(recording: Recording, trace: DeviceTrace) -> bool:
    """Return whether a clock that matters to the candidate changed during its turns."""
    candidate = recording.candidate
    ranges = trace.clock_ranges(candidate.name, on_gpu=candidate.uses_gpu)
    return any(high - low > NOTABLE_CHANGE * high for low, high in ranges.values())


def _run_alone(recording: Recording) -> None:
    """Run for half of _ALONE_S unrecorded and then record, without turns of others, in which a clock falls."""
    name, infer = recording.candidate.name, recording.candidate.infer
    end_ns = clock.now_ns() + round(1e9 * _ALONE_S)
    settled_ns = end_ns - round(1e9 * _ALONE_S / 2)
    while not recording.alone_ns or clock.now_ns() < end_ns:
        start_ns, duration_ns, _ = timed(name, infer)
        if start_ns >= settled_ns:
            recording.alone_ns.append(duration_ns)


def _probe(origin_ns: int) -> Probe:
    start_ns = clock.now_ns()
    return Probe(start_ns - origin_ns, clock.machine_speed_ms())
