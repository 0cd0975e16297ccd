"""Measure the candidates of one model in one interleaved run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone

from edgevit.latency.compare import side_by_side
from edgevit.latency.measure import measure
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.studies import Studies, Subject, study
from edgevit.types import PRECISIONS, Precision
from tests.tools.bench.candidates import BY_NAME, Candidate, peers_of, usable_candidates
from tests.tools.bench.engine_builder import EngineBuilder
from tests.tools.bench.rows import Figures, Row, Speedup, this_processor, this_revision

_SAMPLED_FRACTION = 0.35  # of the time; the rest is for warm-ups and unrecorded runs
_MOST_DB = 150.0  # equal outputs have no noise


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRequest:
    """A measurement to make."""

    threads: int
    seconds: float  # of the interleaved run
    precisions: tuple[Precision, ...] = PRECISIONS

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return usable_candidates(self.precisions)


def build_all(builder: EngineBuilder, request: MeasurementRequest) -> None:
    """Build and open the candidates, without measuring: PyTorch compiles when it is opened."""
    for candidate in request.candidates:
        with ExitStack() as stack:
            builder.open(candidate, request.threads, stack)


def measure_model(builder: EngineBuilder, request: MeasurementRequest) -> Row:
    """Measure the accuracy of all candidates, then their times."""
    with ExitStack() as stack:
        found = [builder.open(each, request.threads, stack) for each in request.candidates]
        subjects = [each for each in found if each is not None]
        snr_db = {each.candidate.name: min(_MOST_DB, builder.snr_db(each.engine)) for each in subjects}
        reports = measure([each.candidate for each in subjects], interleaved_plan(request.seconds, len(subjects)))
        bounds_ms = _bounds_ms(subjects, reports)
    return Row(
        model=builder.name,
        threads=request.threads,
        processor=this_processor(),
        figures={
            report.name: Figures(
                p50_ms=round(report.p50_ms, 4),
                snr_db=round(snr_db[report.name], 1),
                bound_ms=bounds_ms.get(report.name),
            )
            for report in reports
        },
        speedups=_speedups({report.name: report for report in reports}),
        missing=dict(builder.failures),
        million_parameters=round(builder.million_parameters, 2),
        weights=builder.model.origin.weights,
        rounds=len(reports[0].round_ms),
        busy_others=round(reports[0].others_fraction or 0.0, 2),
        packages=dict(reports[0].environment.packages),
        day=datetime.now(timezone.utc).date().isoformat(),
        revision=this_revision(),
    )


def interleaved_plan(seconds: float, candidates: int) -> MeasurePlan:
    """Rounds for about `seconds` on an idle machine, half of them unrecorded; on a busy one, as long as they take."""
    samples_s = _SAMPLED_FRACTION * seconds / candidates
    return MeasurePlan(min_runs=1, turn_s=0.05, min_duration_s=samples_s, max_duration_s=10 * seconds, warmup_max_s=2.0)


def _bounds_ms(subjects: Sequence[Subject], reports: Sequence[LatencyReport]) -> dict[str, float]:
    """Return the least time of the multiply-adds of each engine of ours."""
    own = [(subject, report) for subject, report in zip(subjects, reports, strict=True) if not subject.is_peer]
    studied = study(Studies(roofline=True), [subject for subject, _ in own], [report for _, report in own])
    return {
        report.name: float(f"{report.roofline.compute_ms:.4g}") for report in studied if report.roofline is not None
    }


def _speedups(reports: Mapping[str, LatencyReport]) -> dict[str, dict[str, Speedup]]:
    """Return how many times as long each peer takes as each engine of ours, paired by round."""
    return {
        name: {peer.name: speedup(own, reports[peer.name]) for peer in peers_of(BY_NAME[name]) if peer.name in reports}
        for name, own in reports.items()
        if BY_NAME[name].kind == "ours"
    }


def speedup(own: LatencyReport, peer: LatencyReport) -> Speedup:
    """Return how many times as long the peer takes, paired by round."""
    ratio = side_by_side([own, peer])[1].ratio
    assert ratio is not None  # of the second row
    assert ratio.interval is not None  # of the rounds of the plan
    return Speedup(*(round(each, 4) for each in (ratio.value, ratio.interval.low, ratio.interval.high)))
