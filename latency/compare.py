"""Reports against each other: side by side from one run, or with a baseline of another run on the same machine.

Ratios are of the time for one image, and "cannot tell" is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import MeasureError, RegressionError, UsageError
from edgevit.latency import statistics
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio
from edgevit.types import Interval

# Two loads of one engine differ, always in the same direction while they live, because their memory lies elsewhere
# (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong"). Measured with shiftvit_cifar10
# on a quiet EPYC core, six loads in each of nine processes, ONNX Runtime or OpenVINO: up to 1.7 %.
MEMORY_LAYOUT_EFFECT = 0.02


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison; the first has no ratio, it is what the others are compared with."""

    report: LatencyReport
    ratio: Ratio | None


def side_by_side(reports: Sequence[LatencyReport]) -> tuple[Row, ...]:
    """The reports of one interleaved run, each with its ratio to the first, paired round by round.

    Raises MeasureError where they are not of one run: then nothing cancels what disturbed them.
    """
    if not reports:
        raise UsageError("nothing to compare; give the reports of one run")
    first, *others = reports
    for other in others:
        if other.run_id != first.run_id:
            raise MeasureError(
                f"cannot tell: {other.name} and {first.name} were not measured side by side; measure them in one run"
            )
    return (Row(first, None), *(Row(other, _paired(other, first)) for other in others))


def against_baseline(report: LatencyReport, baseline: LatencyReport) -> Ratio:
    """The ratio to a stored report of another run: of the medians, unpaired.

    The interval holds the ratio as measured and as corrected for the machine's own speed then and now (the probes),
    so that a machine that was slower for one of them widens the interval instead of deciding the verdict.
    Raises MeasureError where the machines, their settings, the runtimes or the inputs differ.
    """
    differences = (*_input_differences(report, baseline), *report.environment.differences(baseline.environment))
    if differences:
        raise MeasureError(f"cannot tell: {'; '.join(differences)}. Measure the baseline again under these conditions")
    ratio = statistics.unpaired_ratio(_per_image(report), _per_image(baseline))
    speed = 1.0  # above 1: the machine itself is slower now
    if report.probe_ms is not None and baseline.probe_ms is not None:
        speed = report.probe_ms / baseline.probe_ms
    reason = _in_which_run(report, baseline)
    return _judged(ratio, reason, slower=max(1.0, speed), faster=max(1.0, 1 / speed))


def require_allowance(max_slowdown: float) -> None:
    """Raises UsageError for what no gate allows: to be called before a long measurement."""
    if not 0 <= max_slowdown < float("inf"):
        raise UsageError(f"max_slowdown is a share from 0 up, as 0.1 for 10 %, not {max_slowdown}")


def gate(report: LatencyReport, baseline: LatencyReport, *, max_slowdown: float) -> Ratio:
    """The ratio to the baseline, the whole interval of which is allowed; `max_slowdown` 0.1 allows a tenth more time.

    Raises RegressionError where the whole interval lies beyond that, MeasureError where it cannot be told or the two
    do not compare.
    """
    require_allowance(max_slowdown)
    ratio, allowed = against_baseline(report, baseline), 1 + max_slowdown
    if ratio.interval is None or ratio.reason:
        raise MeasureError(f"cannot tell whether {report.name} is slower than its baseline: {ratio.reason}")
    low, high = ratio.interval.low, ratio.interval.high
    if low > allowed:
        raise RegressionError(
            f"{report.name} takes {ratio.value:.3f} times as long as its baseline ({report.p50_ms:.3f} ms, was "
            f"{baseline.p50_ms:.3f} ms; at least {low:.3f} times with 99 % confidence, {allowed:g} allowed); find what "
            "changed, or store a new baseline"
        )
    if high > allowed:
        raise MeasureError(
            f"cannot tell whether {report.name} is slower than its baseline allows: {low:.3f} to {high:.3f} times, "
            f"{allowed:g} allowed; measure longer, or allow more"
        )
    return ratio


def _paired(report: LatencyReport, reference: LatencyReport) -> Ratio:
    ratio = statistics.paired_ratio(_per_image(report), _per_image(reference))
    return _judged(ratio, report.noise_reason)


def _judged(ratio: Ratio, reason: str, *, slower: float = 1.0, faster: float = 1.0) -> Ratio:
    """The ratio with an interval that allows for what the samples cannot show, and the reason to withhold a verdict.

    `slower` and `faster` say by which factor the machine may have been so for the report.
    """
    if ratio.interval is None:
        return ratio
    low = ratio.interval.low / slower / (1 + MEMORY_LAYOUT_EFFECT)
    high = ratio.interval.high * faster * (1 + MEMORY_LAYOUT_EFFECT)
    return Ratio(ratio.value, Interval(low, high), ratio.rounds, reason)


def _in_which_run(report: LatencyReport, baseline: LatencyReport) -> str:
    """The reason why one of two separate runs gives no verdict."""
    if report.noise_reason:
        return report.noise_reason
    if baseline.noise_reason:
        return f"in the baseline's run, {baseline.noise_reason}"
    if None not in (report.throttled, baseline.throttled) and report.throttled != baseline.throttled:
        return f"the machine throttled in {'this' if report.throttled else 'the baseline'} run only; let it cool"
    return ""


def _per_image(report: LatencyReport) -> NDArray[np.float64]:
    return report.round_ms / report.batch


def _input_differences(report: LatencyReport, baseline: LatencyReport) -> tuple[str, ...]:
    pairs = {
        "batch": (report.batch, baseline.batch),
        "threads": (report.threads, baseline.threads),
        "input shapes": (dict(report.input_shapes), dict(baseline.input_shapes)),
    }
    return tuple(f"{name}: {mine} here, {theirs} there" for name, (mine, theirs) in pairs.items() if mine != theirs)
