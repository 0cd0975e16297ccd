"""Studies: measurements of one engine beside the timed rounds, which slow it or take all of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgevit.errors import BuildError, InferenceError, MeasureError, MissingError, UsageError
from edgevit.files import first_line
from edgevit.latency.candidate import Candidate
from edgevit.latency.progress import MeasureProgress, OnMeasure, ignore_progress
from edgevit.latency.report import LAYERS, ROOFLINE, SUSTAINED, THROUGHPUT, LatencyReport
from edgevit.latency.roofline import Roofline, copied_bytes, copy_rate, device_copy_rate, matmul_rate
from edgevit.latency.sustained import MIN_S, SustainedRun, run_sustained
from edgevit.latency.throughput import Throughput, saturate, stream_counts
from edgevit.macs import ModelWork
from edgevit.runtimes.base import Engine
from edgevit.runtimes.layer_profile import LayerProfile
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import PRECISIONS, Array

_PROFILE_MS = 1000.0  # total time of the profiled inferences
_MIN_PROFILED, _MAX_PROFILED = 5, 50
_SETTING_S = 1.0  # time to measure the throughput of one setting
_MAX_SUSTAINED_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Studies:
    """The studies to make. Raises UsageError for a wrong time."""

    roofline: bool = False
    layers: bool = False
    throughput: bool = False
    sustained_s: float | None = None  # None: no sustained run

    def __post_init__(self) -> None:
        if self.sustained_s is not None and not MIN_S <= self.sustained_s <= _MAX_SUSTAINED_S:
            raise UsageError(f"a sustained run takes {MIN_S:g} s to 24 h, not {self.sustained_s:g} s")


NO_STUDIES = Studies()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine that was measured as `candidate`, while it is still open."""

    candidate: Candidate
    engine: Engine
    runtime: str  # its title; engines of one runtime share the rates of its matrix products
    feeds: Mapping[int, Mapping[str, Array]]  # inputs by batch, in rising order
    executed: ExecutedPrecision
    work: ModelWork | None  # None if the manifest does not have it
    is_peer: bool = False  # built for comparison: only its limit is of interest

    @property
    def measured_feeds(self) -> Mapping[str, Array]:
        return self.feeds[self.candidate.batch]


def study(
    studies: Studies,
    subjects: Sequence[Subject],
    reports: Sequence[LatencyReport],
    on_progress: OnMeasure | None = None,
) -> tuple[LatencyReport, ...]:
    """Make the studies of each subject, and return the reports with their results."""
    on_progress = on_progress or ignore_progress
    machine = Machine()
    return tuple(
        _study_one(studies, subject, report, machine, on_progress)
        for subject, report in zip(subjects, reports, strict=True)
    )


def _study_one(
    studies: Studies, subject: Subject, report: LatencyReport, machine: Machine, on_progress: OnMeasure
) -> LatencyReport:
    name, own = report.name, not subject.is_peer

    def show(what: str, fraction: float = 0.0) -> None:
        on_progress(MeasureProgress(f"{what} of {name}", fraction, None))

    found: dict[str, Any] = {}
    problems = dict(report.study_problems)

    def attempt(part: str, what: str, make: Callable[[], object]) -> None:
        """Keep the result of a study, or why there is none. A failed study does not discard the measurement."""
        show(what)
        try:
            found[part] = make()
        except (MeasureError, MissingError, BuildError, InferenceError) as error:
            problems[part] = first_line(error)
            return
        if found[part] is None:
            problems[part] = f"{subject.runtime} has no such mode here"

    if studies.roofline:
        attempt(ROOFLINE, "limit", lambda: machine.roofline(subject))
    if studies.layers and own:
        attempt(LAYERS, "layers", lambda: _profile(subject, report.p50_ms))
    if studies.throughput and own:
        attempt(THROUGHPUT, "throughput", lambda: _saturate(subject))
    if (seconds := studies.sustained_s) is not None and own:
        attempt(SUSTAINED, "sustained run", lambda: _sustain(subject, seconds, show))
    return replace(report, study_problems=problems, **found)


class Machine:
    """Rates of this machine, measured when they are first needed."""

    def __init__(self) -> None:
        self._products: dict[tuple[str, int | None, str], float | None] = {}
        self._copies: dict[tuple[int | None, int], float] = {}  # in the host's memory

    def roofline(self, subject: Subject) -> Roofline:
        """Return the limit for a subject.

        Raises MeasureError if its runtime multiplies no matrix by itself, or its work is unknown, MissingError or
        BuildError if the device cannot do it here.
        """
        threads, work = subject.candidate.threads, subject.work
        if work is None:
            raise MeasureError("the bundle is of an earlier version and has no multiply-adds; export it again")
        of_batch = work.for_batch(subject.candidate.batch)
        macs = _by_precision(of_batch.macs, subject.executed)
        known: dict[str, float] = {}
        for name in dict.fromkeys((*PRECISIONS, *macs)):
            rate = self._product_rate(subject, name)
            if rate is not None:
                known[name] = rate
        if PRECISIONS[0] not in known:
            raise MeasureError(f"{_multiplying(subject)} multiplies no matrix by itself here")
        moved_bytes = of_batch.weight_bytes + of_batch.io_bytes
        return Roofline(
            runtime=_multiplying(subject),
            threads=threads,
            macs_per_s=known,
            copy_bytes_per_s=self._copy_rate(subject, copied_bytes(moved_bytes)),
            macs=macs,
            moved_bytes=moved_bytes,
            activation_bytes=of_batch.activation_bytes,
        )

    def _product_rate(self, subject: Subject, precision: str) -> float | None:
        key = (_multiplying(subject), subject.candidate.threads, precision)
        if key not in self._products:
            self._products[key] = matmul_rate(subject.engine, precision)
        return self._products[key]

    def _copy_rate(self, subject: Subject, size_bytes: int) -> float:
        on_device = device_copy_rate(subject.engine, size_bytes)
        if on_device is not None:
            return on_device
        key = (subject.candidate.threads, size_bytes)
        if key not in self._copies:
            self._copies[key] = copy_rate(*key)
        return self._copies[key]


def _multiplying(subject: Subject) -> str:
    """Return the runtime, or the library, whose matrix products set the limit for a subject."""
    return subject.engine.product_library or subject.runtime


def _by_precision(macs: int, executed: ExecutedPrecision) -> dict[str, int]:
    """Return the MACs by the precision that runs them; all in the most frequent one if fractions are unknown."""
    if not executed.macs:
        return {executed.actual: macs}
    return {name: round(macs * executed.fraction(name)) for name in executed.macs}


def _profile(subject: Subject, p50_ms: float) -> LayerProfile | None:
    runs = min(_MAX_PROFILED, max(_MIN_PROFILED, round(_PROFILE_MS / p50_ms)))
    return subject.engine.profile_layers(subject.measured_feeds, runs=runs)


def _saturate(subject: Subject) -> Throughput | None:
    streams = stream_counts(subject.candidate.threads, on_gpu=subject.candidate.uses_gpu)
    return saturate(subject.engine, subject.feeds, streams, seconds=_SETTING_S)


def _sustain(subject: Subject, seconds: float, show: Callable[[str, float], None]) -> SustainedRun:
    return run_sustained(subject.candidate, seconds, on_second=lambda fraction: show("sustained run", fraction))
