"""Warnings of a latency report: conditions that a reader must know to interpret its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.runtimes.base import CUDA_GRAPH, THREADS_REQUESTED
from edgevit.words import counted

if TYPE_CHECKING:
    from edgevit.latency.report import LatencyReport

NOTABLE_CHANGE = 0.1  # change of the machine's speed or of the times; a smaller one gives no warning
BUSY_FRACTION = 0.1  # fraction of the cores used by other processes; a smaller one gives no warning


def warnings_of(report: LatencyReport) -> tuple[str, ...]:
    """Return the conditions that apply to a report, each as a phrase."""
    runs, seconds, plan = report.runs, sum(report.samples_ms) / 1e3, report.plan
    warmup_s = plan.warmup_limit_s(1 + len(report.measured_with))
    cuda_graph, parity_failure = report.details.get(CUDA_GRAPH, "yes"), _parity_failure(report)
    reduced_threads, crowded_threads = _reduced_threads(report), _crowded_threads(report)
    conditions = {
        f"the warm-up did not settle within {warmup_s:.3g} s": not report.steady,
        f"stopped after {runs} of {plan.min_runs} runs": runs < plan.min_runs,
        f"stopped after {seconds:.1f} s of {plan.min_duration_s:g} s": seconds < plan.min_duration_s,
        f"the second half took {report.drift:.2f} times the first": abs(report.drift - 1) > NOTABLE_CHANGE,
        f"the machine's own speed varied by {100 * report.speed_range:.0f} %": report.speed_range > NOTABLE_CHANGE,
        f"the machine throttled ({', '.join(report.throttle_causes or ())})": report.throttled is True,
        report.noise_reason: bool(report.noise_reason),
        f"runs without a CUDA graph: {cuda_graph}": cuda_graph != "yes",
        reduced_threads: bool(reduced_threads),
        crowded_threads: bool(crowded_threads),
        f"its outputs are not the reference's: {parity_failure}": bool(parity_failure),
        **_device_conditions(report),
    }
    return tuple(warning for warning, applies in conditions.items() if applies)


def _parity_failure(report: LatencyReport) -> str:
    return "" if report.parity is None or report.parity.passed else report.parity.failure


def _reduced_threads(report: LatencyReport) -> str:
    """Return a warning of fewer threads than were requested; empty if there are as many."""
    requested = report.details.get(THREADS_REQUESTED)
    return "" if requested is None else f"runs {report.threads} of the {requested} threads requested"


def _crowded_threads(report: LatencyReport) -> str:
    """Return a warning of more threads than the process has cores, or the time of them; empty for engines on a GPU."""
    environment, threads = report.environment, report.threads
    cores, limit = len(environment.affinity or ()) or environment.logical_cores, environment.cpu_limit
    if report.uses_gpu or threads is None:
        return ""
    if limit is not None and limit < min(threads, cores or threads):
        return f"its {threads} threads share the time of {counted(limit, 'core')}, by the CPU limit"
    if cores is None or threads <= cores:
        return ""
    return f"its {threads} threads share {counted(cores, 'core')}"


def _device_conditions(report: LatencyReport) -> dict[str, bool]:
    """Return the warnings of the device's samples, and whether each applies; empty without samples."""
    if report.trace is None:
        return {}
    clocks = [
        f"{name} {low:g} to {high:g} MHz"
        for name, (low, high) in report.trace.clock_ranges(report.name, on_gpu=report.uses_gpu).items()
        if high - low > NOTABLE_CHANGE * high
    ]
    problem = report.trace.problem
    return {
        f"the clock did not settle within {report.plan.clock_settle_s:g} s": report.clock_steady is False,
        f"the clocks varied meanwhile: {', '.join(clocks)}": bool(clocks),
        f"the device was not sampled to the end: {problem}": bool(problem),
    }
