"""Measure candidates side by side in interleaved rounds.

One call is timed, from input arrays on the host to output arrays on the host. Copies to and from a device are included
and nothing is queued ahead: this is the latency that an application waits for. Candidates share one process and take
turns, so that a change of the machine's speed affects all of them alike.
"""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edgevit.errors import MeasureError, UsageError
from edgevit.latency import clock
from edgevit.latency.candidate import Candidate
from edgevit.latency.clock import Probe
from edgevit.latency.environment import Environment, MachineState
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.progress import MeasureProgress, OnMeasure, ignore_progress
from edgevit.latency.report import LatencyReport
from edgevit.latency.rounds import Recording, new_recordings, run_rounds, run_varied_alone
from edgevit.latency.sampling.energy import IDLE_SLICES, EnergyRecord, rises_j
from edgevit.latency.sampling.sampler import Sampler, device_sampler
from edgevit.latency.sampling.trace import DeviceTrace
from edgevit.latency.warmup import Warmup, warm_up
from edgevit.runtimes.base import GPU_UUID

# A tick, or the reading of the clock that each duration contains, is then at most 5 % of a median. Models of one small
# layer take 5 to 6 microseconds, as long as some 100 readings.
_MIN_TICKS = 20


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
        recordings = new_recordings(
            candidates, warmups, turn_s=plan.turn_s, min_rounds=plan.min_rounds, limit_s=limit_s
        )
        origin_ns, probes = run_rounds(recordings, plan, limit_s, sampler, on_progress)
        run_varied_alone(recordings, sampler.trace(origin_ns), plan.max_total_s, begin_ns)
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


def _idle_power_w(sampler: Sampler, idle_s: float) -> tuple[tuple[float, ...], ...]:
    """Return the mean power of each slice of idle time by energy counter; empty without a counter."""
    slices: list[tuple[float, ...]] = []
    for _ in range(IDLE_SLICES if sampler.energy_names else 0):
        before_ns, before_j = clock.now_ns(), sampler.energy_j()
        time.sleep(idle_s / IDLE_SLICES)
        spent_j = rises_j(before_j, sampler.energy_j())
        if spent_j is not None:
            elapsed_s = (clock.now_ns() - before_ns) / 1e9
            slices.append(tuple(joules / elapsed_s for joules in spent_j))
    return tuple(slices)


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


def _report(recording: Recording, warmup: Warmup, shared: _Shared) -> LatencyReport:
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


def _energy(recording: Recording, shared: _Shared) -> EnergyRecord | None:
    if not shared.idle_w or not recording.turns_j:
        return None
    return EnergyRecord(
        sources=shared.energy_sources,
        idle_w=shared.idle_w,
        turns_j=tuple(recording.turns_j),
        turns_s=tuple(recording.turns_s),
        inferences=recording.runs_per_turn + 1,
    )
