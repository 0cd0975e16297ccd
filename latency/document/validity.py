"""The validity of a measurement, in the manner of MLPerf Mobile: each condition is yes, no or unknown, with evidence.

Nothing here is stored: the answers are derived from the samples and traces of a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgevit.latency import statistics
from edgevit.latency.document.figures import whole_range
from edgevit.latency.document.product import Product
from edgevit.latency.report import LatencyReport
from edgevit.latency.report_warnings import BUSY_FRACTION, NOTABLE_CHANGE
from edgevit.latency.system_files import SPIKES

Answer: TypeAlias = Literal["yes", "no", "unknown"]

MIN_RECORDED_S = 60.0  # MLPerf Inference: the shortest valid run
MIN_RUNS = statistics.runs_needed(90)
_MIN_CLOCK_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of a valid measurement."""

    name: str
    answer: Answer
    evidence: str


def checks_of(report: LatencyReport, product: Product | None) -> tuple[Check, ...]:
    """Return the conditions for one engine; parity only if it belongs to a bundle."""
    return (
        _clocks(report),
        _no_limit(report),
        _warm(report),
        _no_drift(report),
        _speed(report),
        _alone(report),
        _duration(report),
        _runs(report),
        *(() if product is None else (_parity(report, product),)),
    )


def _answer(*, holds: bool) -> Answer:
    return "yes" if holds else "no"


def _clocks(report: LatencyReport) -> Check:
    name, trace = "clocks held", report.trace
    ranges = {} if trace is None else trace.clock_ranges(report.name, on_gpu=report.uses_gpu)
    count = 0 if trace is None else len(trace.samples_of(report.name))
    if not ranges or count < _MIN_CLOCK_SAMPLES:
        return Check(name, "unknown", f"{count} samples of clocks" if ranges else "no clock was reported")
    moved = any(high - low > NOTABLE_CHANGE * high for low, high in ranges.values())
    shown = ", ".join(f"{clock} {whole_range(low, high)} MHz" for clock, (low, high) in ranges.items())
    return Check(name, _answer(holds=not moved), f"{shown} in {count} samples")


def _no_limit(report: LatencyReport) -> Check:
    name, causes = "no thermal or current limit", report.throttle_causes
    if causes is None:
        return Check(name, "unknown", "no counter and no limit was reported")
    spikes = [
        f"{counter} {rise.per_s:.1f}/s, which lowers no clock"
        for counter, rise in report.throttle_events.items()
        if counter in SPIKES and rise.per_s
    ]
    if causes:
        return Check(name, "no", f"the machine throttled: {', '.join((*causes, *spikes))}")
    counters = [counter for counter in report.throttle_events if counter not in SPIKES]
    sampled = report.trace is not None and report.trace.throttle_causes is not None
    if not counters and not sampled:
        return Check(name, "unknown", "limits were read before and after only, when nothing ran")
    watched = f"{', '.join(counters)} did not rise" if counters else "no limit was active in any sample"
    return Check(name, "yes", "; ".join((watched, *spikes)))


def _warm(report: LatencyReport) -> Check:
    runs = f"{report.warmup_runs} warm-up runs"
    if report.steady and report.clock_steady is not False:
        return Check("warm-up settled", "yes", runs)
    return Check(
        "warm-up settled", "no", f"{'the pace' if not report.steady else 'the clock'} did not settle in {runs}"
    )


def _no_drift(report: LatencyReport) -> Check:
    rounds = len(report.round_ms)
    if rounds < statistics.MIN_ROUNDS:
        return Check("no drift", "unknown", f"{rounds} rounds, {statistics.MIN_ROUNDS} needed")
    steady = abs(report.drift - 1) <= NOTABLE_CHANGE
    return Check("no drift", _answer(holds=steady), f"the second half took {report.drift:.2f} times the first")


def _speed(report: LatencyReport) -> Check:
    name = "machine's speed constant"
    if not report.probes:
        return Check(name, "unknown", "the machine's own speed was not probed")
    evidence = f"the machine's own speed varied by {100 * report.speed_range:.0f} %"
    return Check(name, _answer(holds=report.speed_range <= NOTABLE_CHANGE), evidence)


def _alone(report: LatencyReport) -> Check:
    name, fraction = "no load of others", report.others_fraction
    others = _other_gpu_processes(report)
    if others:
        return Check(name, "no", f"{others:.0f} other processes computed on the GPU")
    if fraction is None:
        return Check(name, "unknown", "the system reports no processor time")
    evidence = f"other processes took {100 * fraction:.0f} % of the cores"
    return Check(name, _answer(holds=fraction <= BUSY_FRACTION), evidence)


def _other_gpu_processes(report: LatencyReport) -> float:
    spread = {} if report.trace is None else report.trace.spread(report.name, "processes")
    return max((high for _, _, high in spread.values()), default=0.0)


def _duration(report: LatencyReport) -> Check:
    seconds = sum(report.samples_ms) / 1e3
    evidence = f"{seconds:.1f} s recorded, {MIN_RECORDED_S:.0f} s needed"
    return Check("duration", _answer(holds=seconds >= MIN_RECORDED_S), evidence)


def _runs(report: LatencyReport) -> Check:
    return Check("samples", _answer(holds=report.runs >= MIN_RUNS), f"{report.runs} runs, {MIN_RUNS} needed")


def _parity(report: LatencyReport, product: Product) -> Check:
    name, own = "parity of this engine", report.parity
    measured = report.details.get("engine_sha256")
    if measured is None:
        return Check(name, "unknown", "the hash of the measured engine was not kept")
    if measured != product.engine_sha256:
        return Check(name, "unknown", "the bundle holds another engine than the one measured")
    figure = ""
    if own is not None:  # compared while it was open for the measurement
        passed = own.passed
        figure = "" if own.cosine is None else f", cosine {own.cosine:.6f}"
    elif product.parity is not None:
        passed = product.parity.passed
        figure = "" if product.parity.snr_db is None else f", SNR {product.parity.snr_db:.0f} dB"
    else:
        return Check(name, "unknown", "the engine was not compared with the reference")
    verdict = "computes the reference outputs" if passed else "does not compute the reference outputs"
    return Check(name, _answer(holds=passed), f"engine {measured[:12]} {verdict}{figure}")
