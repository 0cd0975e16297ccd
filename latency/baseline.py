"""A measurement of before as the bar for one of now: the file that `edgevit latency --json` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import MeasureError, RegressionError, UsageError
from edgevit.latency.compare import gate
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, bounds

Baseline = Mapping[str, LatencyReport]  # by the candidate's name


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineCheck:
    """A candidate that was held against its baseline."""

    name: str
    ratio: Ratio | None  # None where the two do not compare
    allowed: float  # times its baseline
    failure: MeasureError | RegressionError | None  # None: no slower than allowed, and shown to be

    @property
    def sentence(self) -> str:
        if self.ratio is None or self.ratio.interval is None:
            return f"{self.name}: not shown to be as fast as its baseline allows"
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
    """The reports of the candidates `names`. Raises UsageError where the file is none, or lacks one of them."""
    try:
        entries = json.loads(path.read_text("utf-8"))["latency"]
        reports = {str(entry["name"]): LatencyReport.from_json(entry["evidence"]) for entry in entries}
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise UsageError(
            f"{path} is not what `edgevit latency BUNDLE --json FILE` wrote ({error}); measure a baseline again"
        ) from error
    lacking = [name for name in names if name not in reports]
    if lacking:
        raise UsageError(
            f"{path} holds no baseline of {lacking[0]}; it holds {', '.join(reports) or 'none'}: measure one of it too"
        )
    return {name: reports[name] for name in names}


def check_baseline(
    found: Sequence[LatencyReport], baseline: Baseline, *, max_slowdown: float
) -> tuple[BaselineCheck, ...]:
    """Each candidate that has a baseline, held against it; `max_slowdown` 0.1 allows a tenth more time."""
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
    """The first that is slower than allowed, else the first of which that cannot be told."""
    failures = [each.failure for each in checks if each.failure is not None]
    return min(failures, key=lambda failure: not isinstance(failure, RegressionError), default=None)
