"""Measure candidates side by side in interleaved rounds.

One call is timed, from input arrays on the host to output arrays on the host. Copies to and from a device are included
and nothing is queued ahead: this is the latency that an application waits for. Candidates share one process and take
turns, so that a change of the machine's speed affects all of them alike.
"""

from __future__ import annotations

import gc
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import MeasureError, UsageError
from edgevit.latency import clock
from edgevit.latency.candidate import (
    Candidate,
    candidate_from_callable,
    candidate_from_engine,
    require_valid_outputs,
    timed,
)
from edgevit.latency.clock import Probe
from edgevit.latency.compare import is_undecided
from edgevit.latency.environment import Environment, MachineState
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.report_warnings import NOTABLE_CHANGE
from edgevit.latency.sampling.energy import IDLE_SLICES, EnergyRecord
from edgevit.latency.sampling.sampler import Sampler, device_sampler
from edgevit.latency.sampling.trace import DeviceTrace
from edgevit.latency.warmup import Warmup, warm_up
from edgevit.runtimes.base import GPU_UUID

__all__ = [
    "Candidate",
    "LatencyReport",
    "MeasurePlan",
    "MeasureProgress",
    "OnMeasure",
    "candidate_from_callable",
    "candidate_from_engine",
    "measure",
]

_MIN_TICKS = 100  # one tick of the clock is then at most 1 % of a median
_PROBE_INTERVAL_NS = 500_000_000
_SAMPLED_BETWEEN_NS = 100_000_000  # a millisecond of waiting changes such an inference by less than 1 %
_POLL_S = 0.0005
_ALONE_S = 2.0  # time that a candidate runs alone
_LONG_INFERENCE_NS = 1_000_000_000  # cold caches change such an inference by far less than 1 %


@dataclass(frozen=True, slots=True)
class MeasureProgress:
    """How far a measurement is."""

    stage: str  # "warm-up of NAME" or "measuring"
    fraction: float  # of the stage, 0 to 1
    remaining_s: float | None  # None during the warm-up


OnMeasure: TypeAlias = Callable[[MeasureProgress], None]


def measure(
    candidates: Sequence[Candidate],
    plan: MeasurePlan | None = None,
    on_progress: OnMeasure | None = None,
    *,
    root: Path = Path("/"),
) -> tuple[LatencyReport, ...]:
    """Measure candidates side by side and return one report each, in the order given.

    `plan` is `MeasurePlan()` by default. `on_progress` is called between rounds, while nothing is timed. A candidate
    that is too slow for the plan gets fewer runs, which its report states. `root` is the folder that holds the system's
    files. Raises MeasureError if an inference fails or returns NaN or infinity, or if the clock is too coarse for it.
    """
    _require_distinct_names(candidates)
    plan, on_progress = plan or MeasurePlan(), on_progress or ignore_progress
    environment, resolution_ns = Environment.capture(root), clock.resolution_ns()
    begin_ns = clock.now_ns()
    names = tuple(candidate.name for candidate in candidates)
    gpus = {candidate.details.get(GPU_UUID, "") for candidate in candidates}
    sampling = device_sampler(names, gpu_uuids=gpus, interval_s=plan.sample_interval_s, root=root)
    with sampling as sampler, _garbage_collection_off():
        idle_w = _idle_power_w(sampler, plan.idle_s)
        warmups = _warm_up_all(candidates, plan, sampler, on_progress, resolution_ns)
        limit_s = plan.rounds_limit_s(len(candidates), elapsed_s=(clock.now_ns() - begin_ns) / 1e9)
        recordings = _new_recordings(
            candidates, warmups, turn_s=plan.turn_s, min_rounds=plan.min_rounds, limit_s=limit_s
        )
        origin_ns, probes = _run_rounds(recordings, plan, limit_s, sampler, on_progress)
        _run_varied_alone(recordings, sampler.trace(origin_ns), plan.max_total_s, begin_ns)
    for recording in recordings:
        _require_fine_clock(recording.candidate.name, float(np.median(recording.durations_ns)), resolution_ns)
    shared = _Shared(
        run_id=uuid.uuid4().hex,
        probes=probes,
        resolution_ns=resolution_ns,
        plan=plan,
        environment=environment,
        after=MachineState.capture(root),
        names=names,
        trace=sampler.trace(origin_ns),
        energy_sources=sampler.energy_names,
        idle_w=idle_w,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return tuple(_report(recording, warmup, shared) for recording, warmup in zip(recordings, warmups, strict=True))


@dataclass(slots=True)
class _Recording:
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

    def turns(self) -> list[NDArray[np.int64]]:
        """Return the durations of each round."""
        return np.split(np.array(self.durations_ns), np.flatnonzero(np.diff(self.rounds)) + 1)

    def done_fraction(self, plan: MeasurePlan) -> float:
        """Return the fraction of the plan's runs and seconds that is recorded, 0 to 1."""
        runs = len(self.durations_ns) / plan.min_runs
        return min(1.0, runs, self.total_ns / (1e9 * plan.min_duration_s) if plan.min_duration_s else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """Facts that all reports of one run share."""

    run_id: str
    probes: tuple[Probe, ...]
    resolution_ns: int
    plan: MeasurePlan
    environment: Environment
    after: MachineState
    names: tuple[str, ...]
    trace: DeviceTrace | None
    energy_sources: tuple[str, ...]
    idle_w: tuple[tuple[float, ...], ...]
    measured_at: str


def _warm_up_all(
    candidates: Sequence[Candidate],
    plan: MeasurePlan,
    sampler: Sampler,
    on_progress: OnMeasure,
    resolution_ns: int,
) -> list[Warmup]:
    """Warm up the candidates one after the other. Raises MeasureError if the clock is too coarse for one."""
    warmups = []
    for number, candidate in enumerate(candidates):
        on_progress(MeasureProgress(f"warm-up of {candidate.name}", number / len(candidates), None))
        limit_s = plan.warmup_limit_s(len(candidates))
        warmups.append(warm_up(candidate, plan, max_s=limit_s, sampler=sampler, index=number))
        _require_fine_clock(candidate.name, warmups[-1].median_ns, resolution_ns)
    return warmups


def _new_recordings(
    candidates: Sequence[Candidate], warmups: Sequence[Warmup], *, turn_s: float, min_rounds: int, limit_s: float
) -> list[_Recording]:
    """Return a recording without samples for each candidate, with the runs of a turn.

    They fill `turn_s`, or less if `min_rounds` would exceed `limit_s`.
    """
    # The second half of the time is for the unrecorded runs.
    turn_s = min(turn_s, limit_s / (2 * min_rounds * len(candidates)))
    return [
        _Recording(
            candidate,
            index=index,
            runs_per_turn=max(1, round(1e9 * turn_s / warmup.median_ns)),
            settles=warmup.median_ns < _LONG_INFERENCE_NS,
            sampled_between=warmup.median_ns >= _SAMPLED_BETWEEN_NS,
        )
        for index, (candidate, warmup) in enumerate(zip(candidates, warmups, strict=True))
    ]


def _run_rounds(
    recordings: Sequence[_Recording], plan: MeasurePlan, limit_s: float, sampler: Sampler, on_progress: OnMeasure
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


def _is_undecided(recordings: Sequence[_Recording], confidence: float) -> bool:
    """Return whether the ratio of any candidate to the first needs more rounds."""
    first, *others = (
        [float(np.median(turn)) / recording.candidate.batch for turn in recording.turns()] for recording in recordings
    )
    return any(is_undecided(each, first, confidence) for each in others)


def _progress(fraction: float, elapsed_s: float, limit_s: float) -> MeasureProgress:
    """Return the progress of rounds that end when `fraction` is 1 or `limit_s` has passed."""
    remaining_s = max(0.0, min(elapsed_s * (1 / fraction - 1), limit_s - elapsed_s))
    return MeasureProgress("measuring", elapsed_s / (elapsed_s + remaining_s), remaining_s)


def _settle(recording: _Recording, settle_s: float, sampler: Sampler) -> None:
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


def _take_turn(recording: _Recording, number: int, origin_ns: int, sampler: Sampler) -> None:
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
        spent_j = _spent_j(before_j, sampler.energy_j())
        if spent_j is not None:
            recording.turns_j.append(spent_j)
            recording.turns_s.append((clock.now_ns() - before_ns) / 1e9)


def _run_varied_alone(
    recordings: Sequence[_Recording], trace: DeviceTrace | None, max_total_s: float | None, begin_ns: int
) -> None:
    """Run those of several candidates alone whose clock changed, as long as `max_total_s` leaves time."""
    if trace is None or len(recordings) < 2:
        return
    for recording in recordings:
        elapsed_s = (clock.now_ns() - begin_ns) / 1e9
        if _clock_varied(recording, trace) and elapsed_s + _ALONE_S <= (max_total_s or math.inf):
            _run_alone(recording)


def _clock_varied(recording: _Recording, trace: DeviceTrace) -> bool:
    """Return whether a clock that matters to the candidate changed during its turns."""
    candidate = recording.candidate
    ranges = trace.clock_ranges(candidate.name, on_gpu=candidate.uses_gpu)
    return any(high - low > NOTABLE_CHANGE * high for low, high in ranges.values())


def _run_alone(recording: _Recording) -> None:
    """Run for half of _ALONE_S unrecorded and then record, without turns of others, in which a clock falls."""
    name, infer = recording.candidate.name, recording.candidate.infer
    end_ns = clock.now_ns() + round(1e9 * _ALONE_S)
    settled_ns = end_ns - round(1e9 * _ALONE_S / 2)
    while not recording.alone_ns or clock.now_ns() < end_ns:
        start_ns, duration_ns, _ = timed(name, infer)
        if start_ns >= settled_ns:
            recording.alone_ns.append(duration_ns)


def _idle_power_w(sampler: Sampler, idle_s: float) -> tuple[tuple[float, ...], ...]:
    """Return the mean power of each slice of idle time by energy counter; empty without a counter."""
    slices: list[tuple[float, ...]] = []
    for _ in range(IDLE_SLICES if sampler.energy_names else 0):
        before_ns, before_j = clock.now_ns(), sampler.energy_j()
        time.sleep(idle_s / IDLE_SLICES)
        spent_j = _spent_j(before_j, sampler.energy_j())
        if spent_j is not None:
            elapsed_s = (clock.now_ns() - before_ns) / 1e9
            slices.append(tuple(joules / elapsed_s for joules in spent_j))
    return tuple(slices)


def _spent_j(before_j: Sequence[float | None], after_j: Sequence[float | None]) -> tuple[float, ...] | None:
    """Return the rise of each energy counter; None if one of them could not be read."""
    spent_j = [high - low for low, high in zip(before_j, after_j, strict=True) if low is not None and high is not None]
    return tuple(spent_j) if len(spent_j) == len(before_j) else None


def _require_fine_clock(name: str, median_ns: float, resolution_ns: int) -> None:
    if median_ns < _MIN_TICKS * resolution_ns:
        raise MeasureError(
            f"one inference of {name} takes {median_ns:.0f} ns and the clock ticks every {resolution_ns} ns; "
            "measure a larger batch, or several inferences in one call"
        )


def _require_distinct_names(candidates: Sequence[Candidate]) -> None:
    names = [candidate.name for candidate in candidates]
    if not names:
        raise UsageError("nothing to measure; pass at least one candidate")
    if len(set(names)) < len(names):
        raise UsageError(f"candidates need distinct names; got {', '.join(names)}")


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Switch Python's collector off, which would stop one candidate to clean up after another."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _probe(origin_ns: int) -> Probe:
    start_ns = clock.now_ns()
    return Probe(start_ns - origin_ns, clock.machine_speed_ms())


def ignore_progress(progress: MeasureProgress) -> None:
    """Show nothing."""
    del progress


def _report(recording: _Recording, warmup: Warmup, shared: _Shared) -> LatencyReport:
    candidate = recording.candidate
    return LatencyReport(
        name=candidate.name,
        run_id=shared.run_id,
        measured_with=tuple(name for name in shared.names if name != candidate.name),
        samples_ms=tuple(duration / 1e6 for duration in recording.durations_ns),
        starts_ns=tuple(recording.starts_ns),
        rounds=tuple(recording.rounds),
        batch=candidate.batch,
        input_shapes=candidate.input_shapes,
        threads=candidate.threads,
        load_s=candidate.load_s,
        first_inference_ms=candidate.first_inference_ms,
        memory_rise_mb=candidate.memory_rise_mb,
        peak_memory_mb=candidate.peak_memory_mb,
        device_memory_mb=candidate.device_memory_mb,
        steady=warmup.steady,
        warmup_runs=warmup.runs,
        probes=shared.probes,
        clock_resolution_ns=shared.resolution_ns,
        plan=shared.plan,
        environment=shared.environment,
        after=shared.after,
        details=candidate.details,
        compute_ms=_all_known(recording.compute_ms),
        parity=candidate.parity,
        trace=shared.trace,
        energy=_energy(recording, shared),
        measured_at=shared.measured_at,
        clock_steady=warmup.clock_steady,
        alone_ms=tuple(duration / 1e6 for duration in recording.alone_ns),
    )


def _all_known(values: Sequence[float | None]) -> tuple[float, ...]:
    """Return the values; none if one of them is unknown."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()


def _energy(recording: _Recording, shared: _Shared) -> EnergyRecord | None:
    if not shared.idle_w or not recording.turns_j:
        return None
    return EnergyRecord(
        sources=shared.energy_sources,
        idle_w=shared.idle_w,
        turns_j=tuple(recording.turns_j),
        turns_s=tuple(recording.turns_s),
        inferences=recording.runs_per_turn + 1,
    )
