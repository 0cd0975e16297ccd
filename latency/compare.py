"""Compare reports of one run, or a report with a baseline.

A ratio is of the times per image. A verdict is "faster", "slower" or "cannot tell".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import MeasureError, RegressionError, UsageError
from edgevit.latency import statistics
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, Values
from edgevit.runtimes.base import GPU
from edgevit.types import Interval

# Two loads of the same engine have different speeds for as long as they live, because their memory is laid out
# differently (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong"). Measured with
# shiftvit_cifar10 on an idle EPYC core, six loads in each of nine processes, ONNX Runtime or OpenVINO: up to 1.7 %.
MEMORY_LAYOUT_EFFECT = 0.02
PERCENTS = (50, 90, 99)
NARROW = 0.04  # half-width below which more rounds hardly help: memory layout alone accounts for half of it
_MAX_FRACTION = 0.99  # largest fraction of the cores that counts as used by others; keeps the interval finite


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a comparison. `ratio` is None in the first row, with which the others are compared."""

    report: LatencyReport
    ratio: Ratio | None


def side_by_side(reports: Sequence[LatencyReport]) -> tuple[Row, ...]:
    """Return the reports of one interleaved run, each with its ratio to the first, paired by round.

    Raises MeasureError if they come from different runs, in which changes of the machine do not cancel.
    """
    if not reports:
        raise UsageError("nothing to compare; pass the reports of one run")
    first, *others = reports
    for other in others:
        if other.run_id != first.run_id:
            raise MeasureError(
                f"cannot tell: {other.name} and {first.name} were not measured side by side; measure them in one run"
            )
    return (Row(first, None), *(Row(other, _paired(other, first)) for other in others))


def device_name(reports: Sequence[LatencyReport]) -> str:
    """Return the device of one run: its board, the GPU that an engine used, and its processor."""
    environment = reports[0].environment
    gpu = next((report.details[GPU] for report in reports if report.uses_gpu), None)
    named = [environment.board, gpu, environment.cpu or environment.architecture]
    return ", ".join(dict.fromkeys(part for part in named if part))


def latency_figures(report: LatencyReport) -> dict[str, Any]:
    """Return the figures of a report by name, without its samples."""
    return {
        "name": report.name,
        "p50_ms": report.p50_ms,
        "p90_ms": report.p90_ms,
        "p99_ms": report.p99_ms,
        **{
            f"p{percent}_interval_ms": statistics.bounds(report.percentile_interval_ms(percent))
            for percent in PERCENTS[1:]
        },
        "p50_interval_ms": statistics.bounds(report.p50_interval_ms),
        "compute_ms": _compute_figures(report),
        "alone_p50_ms": report.alone_p50_ms,
        "mean_ms": report.mean_ms,
        "std_ms": report.std_ms,
        "throughput_per_s": report.throughput_per_s,
        "runs": report.runs,
        "batch": report.batch,
        "threads": report.threads,
        "load_s": report.load_s,
        "first_inference_ms": report.first_inference_ms,
        "first_answer_ms": report.first_answer_ms,
        "parity": None if report.parity is None else asdict(report.parity),
        "limit_fraction": report.limit_fraction,
        "study_problems": dict(report.study_problems),
        "roofline": None if report.roofline is None else report.roofline.to_json(),
        "throughput": None if report.throughput is None else report.throughput.to_json(),
        "sustained": None if report.sustained is None else report.sustained.to_json(),
        "memory_rise_mb": report.memory_rise_mb,
        "peak_memory_mb": report.peak_memory_mb,
        "device_memory_mb": report.device_memory_mb,
        "steady": report.steady,
        "throttled": report.throttled,
        "throttle_events": {name: asdict(rise) for name, rise in report.throttle_events.items()},
        "power_w": report.power_w,
        "energy_per_inference_j": {
            name: {"value": energy.joules, "interval": statistics.bounds(energy.interval), "idle_w": energy.idle_w}
            for name, energy in report.energy_per_inference.items()
        },
        "doubts": list(report.warnings),
    }


def _compute_figures(report: LatencyReport) -> dict[str, Any] | None:
    """Return the percentiles of the time on the GPU with their intervals; None without a GPU."""
    if not report.compute_ms:
        return None
    found = {percent: report.compute_percentile(percent) for percent in PERCENTS}
    return {
        **{f"p{percent}": value for percent, (value, _) in found.items()},
        **{f"p{percent}_interval": statistics.bounds(interval) for percent, (_, interval) in found.items()},
    }


def latency_json(reports: Sequence[LatencyReport]) -> list[dict[str, Any]]:
    """Return the figures of each report, its ratio to the first report, and all samples."""
    rows = side_by_side(reports) if reports else ()
    return [
        {
            **latency_figures(row.report),
            "ratio": None if row.ratio is None else row.ratio.value,
            "ratio_interval": None if row.ratio is None else statistics.bounds(row.ratio.interval),
            "verdict": None if row.ratio is None else row.ratio.verdict,
            "evidence": row.report.to_json(),
        }
        for row in rows
    ]


def against_baseline(report: LatencyReport, baseline: LatencyReport) -> Ratio:
    """Return the ratio to a stored report of another run: the ratio of the medians, unpaired.

    The interval contains both the measured ratio and the ratio corrected by the probes of the machine's speed, so that
    a machine that was slower in one of the runs widens the interval instead of deciding the verdict. Other processes
    that used a fraction f of the cores widen it by 1 / (1 - f), the slowdown if all processes share the cores equally.
    Raises MeasureError if the machines, their settings, the runtimes or the inputs differ.
    """
    differences = (*_input_differences(report, baseline), *report.environment.differences(baseline.environment))
    if differences:
        raise MeasureError(
            f"cannot compare with the baseline: {'; '.join(differences)}; measure the baseline again here"
        )
    ratio = statistics.unpaired_ratio(_per_image(report), _per_image(baseline))
    if report.noise_reason or baseline.noise_reason:
        fast = statistics.fast_unpaired_interval(_fast_per_image(report), _fast_per_image(baseline))
        ratio = _with_fast_runs(ratio, fast)
    speed = 1.0  # above 1 if the machine is slower now
    if report.probe_ms is not None and baseline.probe_ms is not None:
        speed = report.probe_ms / baseline.probe_ms
    slower, faster = max(1.0, speed) * _load_effect(report), max(1.0, 1 / speed) * _load_effect(baseline)
    reason = _throttle_reason(report, baseline)
    return _widened(ratio, reason, slower=slower, faster=faster)


def require_allowance(max_slowdown: float) -> None:
    """Raise UsageError unless `max_slowdown` is finite and at least 0. Call it before a long measurement."""
    if not 0 <= max_slowdown < float("inf"):
        raise UsageError(
            f"max_slowdown must be a finite fraction of at least 0, for example 0.1 for 10 %; got {max_slowdown}"
        )


def gate(report: LatencyReport, baseline: LatencyReport, *, max_slowdown: float) -> Ratio:
    """Return the ratio to the baseline if its whole interval is allowed; `max_slowdown` 0.1 allows 10 % more time.

    Raises RegressionError if the whole interval is beyond the allowance, MeasureError if the interval contains the
    allowance or the two reports do not compare.
    """
    require_allowance(max_slowdown)
    ratio, allowed = against_baseline(report, baseline), 1 + max_slowdown
    if ratio.interval is None or ratio.reason:
        raise MeasureError(f"cannot tell whether {report.name} is slower than its baseline: {ratio.reason}")
    low, high = ratio.interval.low, ratio.interval.high
    if low > allowed:
        raise RegressionError(
            f"{report.name} takes {ratio.value:.3f} times as long as its baseline ({report.p50_ms:.3f} ms, was "
            f"{baseline.p50_ms:.3f} ms; at least {low:.3f} times with 99 % confidence, {allowed:g} allowed); find the "
            "cause, or store a new baseline"
        )
    if high > allowed:
        raise MeasureError(
            f"cannot tell whether {report.name} is slower than its baseline allows: {low:.3f} to {high:.3f} times, "
            f"{allowed:g} allowed{_noise(report, baseline)}; measure longer with --duration, or raise --max-slowdown"
        )
    return ratio


def _noise(report: LatencyReport, baseline: LatencyReport) -> str:
    """Return a remark on other processes for a message; empty if they used little of the cores."""
    if report.noise_reason:
        return f"; {report.noise_reason}"
    return f"; in the baseline's run, {baseline.noise_reason}" if baseline.noise_reason else ""


def is_undecided(times: Values, reference: Values, confidence: float) -> bool:
    """Return whether more rounds may find a difference: the interval holds 1 and is still wide.

    `times` and `reference` have one value per round, (rounds,).
    """
    ratio = statistics.paired_ratio(times, reference, confidence=confidence)
    if ratio.interval is None:
        return True
    wide = ratio.interval.high / ratio.interval.low > (1 + NARROW) ** 2
    return wide and _widened(ratio).verdict == "cannot tell"


def _paired(report: LatencyReport, reference: LatencyReport) -> Ratio:
    confidence = report.plan.confidence
    ratio = statistics.paired_ratio(_per_image(report), _per_image(reference), confidence=confidence)
    if report.noise_reason:
        fast = statistics.fast_paired_interval(_fast_per_image(report), _fast_per_image(reference))
        ratio = _with_fast_runs(ratio, fast)
    return _widened(ratio)


def _with_fast_runs(ratio: Ratio, fast: Interval) -> Ratio:
    """Return the ratio with an interval that also contains that of the fast runs (see statistics.py)."""
    return ratio if ratio.interval is None else replace(ratio, interval=statistics.union(ratio.interval, fast))


def _widened(ratio: Ratio, reason: str = "", *, slower: float = 1.0, faster: float = 1.0) -> Ratio:
    """Widen the interval for effects that the samples cannot show (memory layout, clocks).

    `slower` and `faster` are the factors by which the machine may have been slower or faster for this report than for
    the other one. `reason` withholds the verdict.
    """
    if ratio.interval is None:
        return ratio
    low = ratio.interval.low / slower / (1 + MEMORY_LAYOUT_EFFECT)
    high = ratio.interval.high * faster * (1 + MEMORY_LAYOUT_EFFECT)
    return Ratio(ratio.value, Interval(low, high), ratio.rounds, reason)


def _load_effect(report: LatencyReport) -> float:
    """Return the factor by which other processes may have slowed a run that no turn of another candidate cancels."""
    return 1 / (1 - min(_MAX_FRACTION, report.others_fraction or 0.0)) if report.noise_reason else 1.0


def _throttle_reason(report: LatencyReport, baseline: LatencyReport) -> str:
    """Return why one of two separate runs allows no verdict; empty if both do."""
    if None not in (report.throttled, baseline.throttled) and report.throttled != baseline.throttled:
        return f"the machine throttled in {'this' if report.throttled else 'the baseline'} run only; let it cool"
    return ""


def _per_image(report: LatencyReport) -> NDArray[np.float64]:
    return report.round_ms / report.batch


def _fast_per_image(report: LatencyReport) -> NDArray[np.float64]:
    return report.fast_round_ms / report.batch


def _input_differences(report: LatencyReport, baseline: LatencyReport) -> tuple[str, ...]:
    pairs = {
        "batch": (report.batch, baseline.batch),
        "threads": (report.threads, baseline.threads),
        "input shapes": (dict(report.input_shapes), dict(baseline.input_shapes)),
    }
    return tuple(f"{name}: {mine} here, {theirs} there" for name, (mine, theirs) in pairs.items() if mine != theirs)
