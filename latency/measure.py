"""Measure candidates side by side in interleaved rounds.

One call is timed, from input arrays on the host to output arrays on the host. Copies to and from a device are included
and nothing is queued ahead: this is the latency that an application waits for. Candidates share one process and take
turns, so that a change of the machine's speed affects all of them alike.
"""

from __future__ import annotations

import functools
import gc
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgevit.errors import MeasureError, UsageError
from edgevit.files import first_line
from edgevit.latency import clock, statistics
from edgevit.latency.clock import Probe
from edgevit.latency.environment import Environment, MachineState
from edgevit.latency.report import LatencyReport, MeasurePlan
from edgevit.latency.sampling.energy import IDLE_SLICES, EnergyRecord
from edgevit.latency.sampling.sampler import Sampler, device_sampler
from edgevit.latency.sampling.trace import DeviceTrace
from edgevit.runtimes.base import GPU_UUID, Engine
from edgevit.runtimes.loading import Loading, memory_rise_mb, resident_mb
from edgevit.types import Array

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
_POLL_S = 0.0005
_LONG_INFERENCE_NS = 1_000_000_000  # cold caches change such an inference by far less than 1 %


@dataclass(frozen=True, slots=True)
class MeasureProgress:
    """How far a measurement is."""

    stage: str  # "warm-up of NAME" or "measuring"
    fraction: float  # of the stage, 0 to 1
    remaining_s: float | None  # None during the warm-up


OnMeasure: TypeAlias = Callable[[MeasureProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A callable to measure, with details for the report.

    `infer` runs one inference on one batch and returns its outputs as NumPy arrays (one, a sequence or a mapping), so
    that they are computed when it returns. `details` go into the report: hash of the artifact, precision, whether the
    engine replays a CUDA graph.
    """

    name: str
    infer: Callable[[], object]
    batch: int = 1
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int | None = None
    load_s: float | None = None
    first_inference_ms: float | None = None
    memory_rise_mb: float | None = None
    peak_memory_mb: float | None = None
    device_memory_mb: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)


def candidate_from_engine(
    name: str,
    engine: Engine,
    feeds: Mapping[str, Array],
    *,
    threads: int | None = None,
    loading: Loading | None = None,
    details: Mapping[str, str] | None = None,
) -> Candidate:
    """Return a candidate that runs `engine` on `feeds`.

    Runs an inference. It counts as the first one, and for the memory, only if the engine has not run before.

    Raises UsageError if the engine does not accept the feeds, MeasureError if the inference fails.
    """
    shapes = {spec.name: feeds[spec.name].shape for spec in engine.inputs if spec.name in feeds}
    had_run = engine.has_run
    candidate = candidate_from_callable(
        name,
        functools.partial(engine.run, feeds),
        batch=_batch_size(engine, feeds),
        input_shapes=shapes,
        threads=threads,
        loading=loading,
    )
    details = {**engine.conditions, **(details or {})}
    candidate = replace(candidate, details=details, device_memory_mb=engine.device_memory_mb)
    return replace(candidate, first_inference_ms=None, memory_rise_mb=None) if had_run else candidate


def candidate_from_callable(
    name: str,
    infer: Callable[[], object],
    *,
    batch: int = 1,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    loading: Loading | None = None,
    details: Mapping[str, str] | None = None,
) -> Candidate:
    """Return a candidate that calls `infer`, for example `lambda: model(images).numpy()` for a PyTorch model.

    Runs the first inference. Raises MeasureError if it fails.
    """
    before_mb = resident_mb()
    _, duration_ns, outputs = _timed(name, infer)
    _require_valid_outputs(name, outputs)
    rises = [loading.memory_rise_mb if loading else None, memory_rise_mb(before_mb)]
    return Candidate(
        name=name,
        infer=infer,
        batch=batch,
        input_shapes=dict(input_shapes or {}),
        threads=threads,
        load_s=loading.load_s if loading else None,
        first_inference_ms=duration_ns / 1e6,
        memory_rise_mb=sum(rise for rise in rises if rise is not None) if None not in rises else None,
        peak_memory_mb=loading.peak_memory_mb if loading else None,
        details=dict(details or {}),
    )


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
    plan, on_progress = plan or MeasurePlan(), on_progress or _ignore
    environment, resolution_ns = Environment.capture(root), clock.resolution_ns()
    begin_ns = clock.now_ns()
    names = tuple(candidate.name for candidate in candidates)
    gpus = {candidate.details.get(GPU_UUID, "") for candidate in candidates}
    sampling = device_sampler(names, gpu_uuids=gpus, interval_s=plan.sample_interval_s, root=root)
    with sampling as sampler, _garbage_collection_off():
        idle_w = _idle_power_w(sampler, plan.idle_s)
        warmups = []
        for number, candidate in enumerate(candidates):
            on_progress(MeasureProgress(f"warm-up of {candidate.name}", number / len(candidates), None))
            warmups.append(_warm_up(candidate, plan, max_s=plan.warmup_limit_s(len(candidates))))
            _require_fine_clock(candidate.name, warmups[-1].median_ns, resolution_ns)
        limit_s = _rounds_limit_s(plan, len(candidates), elapsed_s=(clock.now_ns() - begin_ns) / 1e9)
        # The second half of the time is for the unrecorded runs.
        turn_s = min(plan.turn_s, limit_s / (2 * plan.min_rounds * len(candidates)))
        recordings = [
            _Recording(
                candidate,
                runs_per_turn=max(1, round(1e9 * turn_s / warmup.median_ns)),
                settles=warmup.median_ns < _LONG_INFERENCE_NS,
            )
            for candidate, warmup in zip(candidates, warmups, strict=True)
        ]
        origin_ns, probes = _run_rounds(recordings, plan, limit_s, sampler, on_progress)
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
    )
    return tuple(_report(recording, warmup, shared) for recording, warmup in zip(recordings, warmups, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warmup:
    """The end of a warm-up."""

    runs: int
    steady: bool
    median_ns: float  # of the last window


@dataclass(slots=True)
class _Recording:
    """A candidate's samples while they are recorded."""

    candidate: Candidate
    runs_per_turn: int
    settles: bool  # whether a turn starts with unrecorded runs
    starts_ns: list[int] = field(default_factory=list)
    durations_ns: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    total_ns: int = 0
    turns_j: list[tuple[float, ...]] = field(default_factory=list)
    turns_s: list[float] = field(default_factory=list)

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


def _rounds_limit_s(plan: MeasurePlan, count: int, *, elapsed_s: float) -> float:
    """Return the seconds that the rounds of `count` candidates may take after a warm-up of `elapsed_s`."""
    limit_s = plan.max_duration_s * count
    return limit_s if plan.max_total_s is None else max(0.0, min(limit_s, plan.max_total_s - elapsed_s))


def _warm_up(candidate: Candidate, plan: MeasurePlan, *, max_s: float) -> _Warmup:
    """Run until the last three windows agree, or for `max_s` seconds, but at least once."""
    begin_ns, runs = clock.now_ns(), 0
    window: list[int] = []
    medians: list[float] = []
    window_start_ns = begin_ns
    while True:
        start_ns, duration_ns, outputs = _timed(candidate.name, candidate.infer)
        if not runs:
            _require_valid_outputs(candidate.name, outputs)
        runs, end_ns = runs + 1, start_ns + duration_ns
        window.append(duration_ns)
        if len(window) >= plan.warmup_window_runs and end_ns - window_start_ns >= 1e9 * plan.warmup_window_s:
            medians.append(float(np.median(window)))
            window, window_start_ns = [], end_ns
            if statistics.is_steady(medians, plan.warmup_tolerance):
                return _Warmup(runs=runs, steady=True, median_ns=medians[-1])
        if end_ns - begin_ns >= 1e9 * max_s:
            last_ns = float(np.median(window)) if window else medians[-1]
            return _Warmup(runs=runs, steady=False, median_ns=last_ns)


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
    number, fraction, elapsed_s, round_s = 0, 0.0, 0.0, 0.0
    while not number or (fraction < 1 and elapsed_s + round_s <= limit_s):
        round_start_ns = clock.now_ns()
        for index in random.permutation(len(recordings)):
            sampler.request(int(index))
            _settle(recordings[index], plan, sampler)
            _take_turn(recordings[index], number, origin_ns, sampler)
        number += 1
        now_ns = clock.now_ns()
        elapsed_s, round_s = (now_ns - origin_ns) / 1e9, (now_ns - round_start_ns) / 1e9
        fraction = min(number / plan.min_rounds, *(recording.done_fraction(plan) for recording in recordings))
        if now_ns - origin_ns - probes[-1].start_ns >= _PROBE_INTERVAL_NS:
            probes.append(_probe(origin_ns))
            on_progress(_progress(fraction, elapsed_s, limit_s))
    probes.append(_probe(origin_ns))
    on_progress(MeasureProgress("measuring", 1.0, 0.0))
    return origin_ns, tuple(probes)


def _progress(fraction: float, elapsed_s: float, limit_s: float) -> MeasureProgress:
    """Return the progress of rounds that end when `fraction` is 1 or `limit_s` has passed."""
    remaining_s = max(0.0, min(elapsed_s * (1 / fraction - 1), limit_s - elapsed_s))
    return MeasureProgress("measuring", elapsed_s / (elapsed_s + remaining_s), remaining_s)


def _settle(recording: _Recording, plan: MeasurePlan, sampler: Sampler) -> None:
    """Run unrecorded for `settle_s`, which refills the caches of this candidate, and until the sampler is done.

    So the device is sampled while it works, and not while anything is timed.
    """
    name, infer = recording.candidate.name, recording.candidate.infer
    if not recording.settles:
        while sampler.busy:
            time.sleep(_POLL_S)
        return
    settled_ns = clock.now_ns() + round(1e9 * plan.settle_s)
    _timed(name, infer)
    while clock.now_ns() < settled_ns or sampler.busy:
        _timed(name, infer)


def _take_turn(recording: _Recording, number: int, origin_ns: int, sampler: Sampler) -> None:
    """Record the runs of one turn, and the energy that they take if the device counts it."""
    name, infer = recording.candidate.name, recording.candidate.infer
    counts_energy = bool(sampler.energy_names)
    before_ns, before_j = clock.now_ns(), sampler.energy_j()
    if counts_energy:
        _timed(name, infer)  # after the counters were read, the first run would be slower
    for _ in range(recording.runs_per_turn):
        start_ns, duration_ns, outputs = _timed(name, infer)
        _require_valid_outputs(name, outputs)
        recording.starts_ns.append(start_ns - origin_ns)
        recording.durations_ns.append(duration_ns)
        recording.rounds.append(number)
        recording.total_ns += duration_ns
    if counts_energy:
        spent_j = _spent_j(before_j, sampler.energy_j())
        if spent_j is not None:
            recording.turns_j.append(spent_j)
            recording.turns_s.append((clock.now_ns() - before_ns) / 1e9)


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


def _timed(name: str, infer: Callable[[], object]) -> tuple[int, int, object]:
    """Run once and return start and duration in ns, and the outputs, which are freed outside the timed part."""
    start_ns = clock.now_ns()
    try:
        outputs = infer()
    except UsageError:
        raise
    except Exception as error:
        raise MeasureError(f"an inference of {name} failed ({first_line(error)}); run edgevit verify BUNDLE") from error
    return start_ns, clock.now_ns() - start_ns, outputs


def _require_valid_outputs(name: str, outputs: object) -> None:
    """Raise MeasureError unless the outputs are finite numbers in host memory."""
    if isinstance(outputs, Mapping):
        values = list(outputs.values())
    else:
        values = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    for value in values or [None]:
        if not isinstance(value, np.ndarray | np.generic):
            raise MeasureError(
                f"{name} returned {type(value).__name__} instead of a NumPy array, so its outputs may not be computed "
                "yet; return arrays, as in model(images).numpy()"
            )
        if value.dtype.kind in "fc" and not _is_valid(np.asarray(value)):
            raise MeasureError(f"{name} returned NaN or infinity; run edgevit verify BUNDLE")


def _is_valid(value: Array) -> bool:
    """Return whether an output has neither NaN nor infinity, except -inf in real outputs: logits of masked classes."""
    if value.dtype.kind == "c":
        return bool(np.isfinite(value).all())
    return bool((value < np.inf).all())


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


def _ignore(progress: MeasureProgress) -> None:
    del progress


def _batch_size(engine: Engine, feeds: Mapping[str, Array]) -> int:
    """Return the images per call: the size of the first input's dynamic axis, else of its first axis."""
    spec = engine.inputs[0]
    shape = feeds[spec.name].shape if spec.name in feeds else ()
    axis = spec.shape.index("batch") if spec.is_dynamic else 0
    return shape[axis] if axis < len(shape) else 1


def _report(recording: _Recording, warmup: _Warmup, shared: _Shared) -> LatencyReport:
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
        trace=shared.trace,
        energy=_energy(recording, shared),
    )


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
