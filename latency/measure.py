"""Candidates measured side by side: warm-up, then interleaved turns until there is enough to tell.

What is timed is one call, from arrays on the host to arrays on the host, copies to and from a device included, with
nothing queued ahead: the latency that an application waits for. Candidates share one process and take turns, so
that what disturbs the machine disturbs all of them alike.
"""

from __future__ import annotations

import functools
import gc
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgevit.errors import MeasureError, UsageError
from edgevit.latency import clock, statistics
from edgevit.latency.clock import Probe
from edgevit.latency.environment import Environment, MachineState
from edgevit.latency.report import LatencyReport, MeasurePlan
from edgevit.runtimes.base import Engine
from edgevit.runtimes.loading import Loading, memory_rise_mb, resident_mb
from edgevit.types import Array

__all__ = [
    "Candidate",
    "LatencyReport",
    "MeasurePlan",
    "candidate_from_callable",
    "candidate_from_engine",
    "measure",
]

Progress: TypeAlias = Callable[[str, float], None]  # what is being done, and the share of it that is, 0 to 1

_TICKS = 100  # a median of fewer ticks of the clock would be off by more than a percent
_PROBE_EVERY_NS = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What takes part: `infer` runs one inference on one batch and returns its outputs as NumPy arrays (one, several,
    or by name), so that they are computed when it returns.

    `details` holds what the caller knows and a reader needs: the artefact's hash, the precision found, whether
    the engine replays a CUDA graph or waits spinning.
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
    """An engine as a candidate. Runs its first inference, so give it an engine that has not run yet.

    Raises UsageError where the engine does not take the feeds, MeasureError where the inference fails.
    """
    shapes = {spec.name: feeds[spec.name].shape for spec in engine.inputs if spec.name in feeds}
    return candidate_from_callable(
        name,
        functools.partial(engine.run, feeds),
        batch=_batch(engine, feeds),
        input_shapes=shapes,
        threads=threads,
        loading=loading,
        details=details,
    )


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
    """Anything that runs one inference as a candidate; a PyTorch model joins as `lambda: model(images).numpy()`.

    Runs the first inference. Raises MeasureError where it fails.
    """
    before = resident_mb()
    _, duration, outputs = _timed(name, infer)
    _require_answer(name, outputs)
    rises = [loading.memory_rise_mb if loading else None, memory_rise_mb(before)]
    return Candidate(
        name=name,
        infer=infer,
        batch=batch,
        input_shapes=dict(input_shapes or {}),
        threads=threads,
        load_s=loading.load_s if loading else None,
        first_inference_ms=duration / 1e6,
        memory_rise_mb=sum(rise for rise in rises if rise is not None) if None not in rises else None,
        peak_memory_mb=loading.peak_memory_mb if loading else None,
        details=dict(details or {}),
    )


def measure(
    candidates: Sequence[Candidate], plan: MeasurePlan | None = None, progress: Progress | None = None
) -> tuple[LatencyReport, ...]:
    """A report for each candidate, in the order given, taken side by side by `plan` (`MeasurePlan()` where None).

    `progress` is called between rounds, while nothing is timed. Raises MeasureError where no honest figure exists:
    an inference fails or answers NaN or infinity, the clock is too coarse, `max_duration_s` ends before `min_runs`.
    """
    _require_distinct(candidates)
    plan, progress = plan or MeasurePlan(), progress or _untold
    environment, resolution = Environment.capture(), clock.resolution_ns()
    with _no_garbage_collection():
        warm = []
        for number, each in enumerate(candidates):
            progress(f"warm-up of {each.name}", number / len(candidates))
            warm.append(_warm_up(each, plan))
            _require_fine_clock(each.name, warm[-1].median_ns, resolution)
        records = [
            _Record(each, max(1, round(1e9 * plan.turn_s / warmth.median_ns)))
            for each, warmth in zip(candidates, warm, strict=True)
        ]
        probes = _run_rounds(records, plan, progress)
    for record in records:
        _require_fine_clock(record.candidate.name, float(np.median(record.durations_ns)), resolution)
    shared = _Shared(
        run_id=uuid.uuid4().hex,
        probes=probes,
        resolution_ns=resolution,
        plan=plan,
        environment=environment,
        after=MachineState.capture(),
        names=tuple(each.name for each in candidates),
    )
    return tuple(_report(record, warmth, shared) for record, warmth in zip(records, warm, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warmth:
    """How a warm-up ended."""

    runs: int
    steady: bool
    median_ns: float  # of the last window


@dataclass(slots=True)
class _Record:
    """A candidate's samples while they are being taken."""

    candidate: Candidate
    runs_per_turn: int
    starts_ns: list[int] = field(default_factory=list)
    durations_ns: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    total_ns: int = 0

    def done(self, plan: MeasurePlan) -> float:
        """The share of what the plan asks for, 0 to 1."""
        runs = len(self.durations_ns) / plan.min_runs
        return min(1.0, runs, self.total_ns / (1e9 * plan.min_duration_s) if plan.min_duration_s else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What the reports of one run have in common."""

    run_id: str
    probes: tuple[Probe, ...]
    resolution_ns: int
    plan: MeasurePlan
    environment: Environment
    after: MachineState
    names: tuple[str, ...]


def _warm_up(candidate: Candidate, plan: MeasurePlan) -> _Warmth:
    """Runs until the last three windows agree, or until the time for it is over."""
    begin, runs = clock.now_ns(), 0
    window: list[int] = []
    medians: list[float] = []
    window_start = begin
    while True:
        start, duration, outputs = _timed(candidate.name, candidate.infer)
        if not runs:
            _require_answer(candidate.name, outputs)
        runs, end = runs + 1, start + duration
        window.append(duration)
        if len(window) >= plan.warmup_window_runs and end - window_start >= 1e9 * plan.warmup_window_s:
            medians.append(float(np.median(window)))
            window, window_start = [], end
            if statistics.is_steady(medians, plan.warmup_tolerance):
                return _Warmth(runs=runs, steady=True, median_ns=medians[-1])
        if end - begin >= 1e9 * plan.warmup_max_s:
            last_ns = float(np.median(window)) if window else medians[-1]
            return _Warmth(runs=runs, steady=False, median_ns=last_ns)


def _run_rounds(records: Sequence[_Record], plan: MeasurePlan, progress: Progress) -> tuple[Probe, ...]:
    """Rounds until every candidate has enough. Returns the machine's speed before, between and after them."""
    random = np.random.default_rng(plan.seed)
    origin = clock.now_ns()
    probes = [_probe(origin)]
    number = 0
    while not _finished(records, plan, clock.now_ns() - origin):
        for index in random.permutation(len(records)):
            _take_turn(records[index], number, plan, origin)
        number += 1
        if clock.now_ns() - origin - probes[-1].start_ns >= _PROBE_EVERY_NS:
            probes.append(_probe(origin))
            progress("measuring", min(record.done(plan) for record in records))
    probes.append(_probe(origin))
    progress("measuring", 1.0)
    return tuple(probes)


def _finished(records: Sequence[_Record], plan: MeasurePlan, elapsed_ns: int) -> bool:
    """Whether the rounds are over. Raises MeasureError where they end with too few runs."""
    if all(record.done(plan) >= 1 for record in records):
        return True
    limit_s = plan.max_duration_s * len(records)
    if elapsed_ns < 1e9 * limit_s:
        return False
    for record in records:
        if len(record.durations_ns) < plan.min_runs:
            raise MeasureError(
                f"{record.candidate.name} ran {len(record.durations_ns)} of {plan.min_runs} times in the "
                f"{limit_s:g} s that all candidates had; raise max_duration_s or lower min_runs"
            )
    return True


def _take_turn(record: _Record, number: int, plan: MeasurePlan, origin: int) -> None:
    """Unrecorded runs until the one before has left no trace, then the recorded ones."""
    name, infer = record.candidate.name, record.candidate.infer
    settled = clock.now_ns() + round(1e9 * plan.settle_s)
    _timed(name, infer)
    while clock.now_ns() < settled:
        _timed(name, infer)
    for _ in range(record.runs_per_turn):
        start, duration, outputs = _timed(name, infer)
        _require_answer(name, outputs)
        record.starts_ns.append(start - origin)
        record.durations_ns.append(duration)
        record.rounds.append(number)
        record.total_ns += duration


def _timed(name: str, infer: Callable[[], object]) -> tuple[int, int, object]:
    """One inference: its start and its duration in ns, and its outputs, which are freed outside the timed part."""
    start = clock.now_ns()
    try:
        outputs = infer()
    except UsageError:
        raise
    except Exception as error:
        raise MeasureError(f"an inference of {name} failed ({error}); run it alone, or verify the bundle") from error
    return start, clock.now_ns() - start, outputs


def _require_answer(name: str, outputs: object) -> None:
    """Raises MeasureError unless the outputs are finite numbers on the host."""
    if isinstance(outputs, Mapping):
        answers = list(outputs.values())
    else:
        answers = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    for answer in answers or [None]:
        if not isinstance(answer, np.ndarray | np.generic):
            raise MeasureError(
                f"{name} answers with {type(answer).__name__}, and only NumPy arrays are known to be computed; "
                "return the outputs as arrays, as in model(images).numpy()"
            )
        if answer.dtype.kind in "fc" and not np.isfinite(answer).all():
            raise MeasureError(f"{name} answers with NaN or infinity, whose latency means nothing; verify the bundle")


def _require_fine_clock(name: str, median_ns: float, resolution_ns: int) -> None:
    if median_ns < _TICKS * resolution_ns:
        raise MeasureError(
            f"one inference of {name} takes {median_ns:.0f} ns and the clock ticks every {resolution_ns} ns; "
            "measure a larger batch, or several inferences in one call"
        )


def _require_distinct(candidates: Sequence[Candidate]) -> None:
    names = [each.name for each in candidates]
    if not names:
        raise UsageError("nothing to measure; give at least one candidate")
    if len(set(names)) < len(names):
        raise UsageError(f"candidates need distinct names, not {', '.join(names)}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector would stop one candidate for what another left behind."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _probe(origin: int) -> Probe:
    start = clock.now_ns()
    return Probe(start - origin, clock.machine_speed())


def _untold(stage: str, share: float) -> None:
    """Progress that nobody asked for."""


def _batch(engine: Engine, feeds: Mapping[str, Array]) -> int:
    """The images that one call takes: the dynamic axis of the first input, else its first axis."""
    spec = engine.inputs[0]
    shape = feeds[spec.name].shape if spec.name in feeds else ()
    axis = spec.shape.index("batch") if spec.is_dynamic else 0
    return shape[axis] if axis < len(shape) else 1


def _report(record: _Record, warmth: _Warmth, shared: _Shared) -> LatencyReport:
    each = record.candidate
    return LatencyReport(
        name=each.name,
        run_id=shared.run_id,
        measured_with=tuple(name for name in shared.names if name != each.name),
        samples_ms=tuple(duration / 1e6 for duration in record.durations_ns),
        starts_ns=tuple(record.starts_ns),
        rounds=tuple(record.rounds),
        batch=each.batch,
        input_shapes=each.input_shapes,
        threads=each.threads,
        load_s=each.load_s,
        first_inference_ms=each.first_inference_ms,
        memory_rise_mb=each.memory_rise_mb,
        peak_memory_mb=each.peak_memory_mb,
        steady=warmth.steady,
        warmup_runs=warmth.runs,
        probes=shared.probes,
        clock_resolution_ns=shared.resolution_ns,
        plan=shared.plan,
        environment=shared.environment,
        after=shared.after,
        details=each.details,
    )
