"""Check a measurement against a stored baseline: a file written by `edgevit latency --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import MeasureError, RegressionError, UsageError
from edgevit.files import first_line, os_reason
from edgevit.latency.compare import gate
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, bounds
from edgevit.untrusted import read_json

MAX_BASELINE_BYTES = 256 << 20
_MAX_SHOWN = 200  # characters of a file that an error message repeats

Baseline = Mapping[str, LatencyReport]  # by name of the candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineCheck:
    """The comparison of one candidate with its baseline."""

    name: str
    ratio: Ratio | None  # None if the two do not compare
    allowed: float  # largest allowed ratio
    failure: MeasureError | RegressionError | None  # None if the candidate is shown to be within the allowance

    @property
    def sentence(self) -> str:
        if self.ratio is None or self.ratio.interval is None:
            return f"{self.name}: no comparison with its baseline"
        low, high = self.ratio.interval.low, self.ratio.interval.high
        interval = f"{low:.2f} to {high:.2f}; {self.allowed:g} allowed"
        return f"{self.name}: {self.ratio.value:.2f} times its baseline ({interval})"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ratio": None if self.ratio is None else self.ratio.value,
            "ratio_interval": None if self.ratio is None else bounds(self.ratio.interval),
            "allowed": self.allowed,
            "failure": None if self.failure is None else str(self.failure),
        }


def read_baseline(path: Path, names: Sequence[str]) -> Baseline:
    """Return the reports of the candidates `names`, by name.

    Raises UsageError if the file is not a baseline, or has no report of one of them.
    """
    try:
        entries = read_json(path, limit_bytes=MAX_BASELINE_BYTES)["latency"]
        reports = {str(entry["name"]): LatencyReport.from_json(entry["evidence"]) for entry in entries}
    except OSError as error:
        raise UsageError(f"cannot read the baseline {path}: {os_reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, UsageError) as error:
        raise UsageError(
            f"{path} is not a baseline ({first_line(error)[:_MAX_SHOWN]}); "
            "write one with edgevit latency BUNDLE --json FILE"
        ) from error
    missing = [name for name in names if name not in reports]
    if missing:
        listed = ", ".join(reports)[:_MAX_SHOWN]
        raise UsageError(
            f"{path} has no baseline of {missing[0]}, only of {listed or 'nothing'}; measure {missing[0]} as well"
        )
    return {name: reports[name] for name in names}


def check_baseline(
    found: Sequence[LatencyReport], baseline: Baseline, *, max_slowdown: float
) -> tuple[BaselineCheck, ...]:
    """Compare each report that has a baseline; `max_slowdown` 0.1 allows 10 % more time."""
    return tuple(
        _check(report, baseline[report.name], max_slowdown=max_slowdown) for report in found if report.name in baseline
    )


def _check(report: LatencyReport, baseline: LatencyReport, *, max_slowdown: float) -> BaselineCheck:
    ratio, failure = None, None
    try:
        ratio = gate(report, baseline, max_slowdown=max_slowdown)
    except (MeasureError, RegressionError) as error:
        failure = error
    return BaselineCheck(name=report.name, ratio=ratio, allowed=1 + max_slowdown, failure=failure)


def first_failure(checks: Sequence[BaselineCheck]) -> MeasureError | RegressionError | None:
    """Return the first candidate's failure that is a slowdown, else the first that is a missing verdict, else None."""
    failures = [each.failure for each in checks if each.failure is not None]
    return min(failures, key=lambda failure: not isinstance(failure, RegressionError), default=None)
