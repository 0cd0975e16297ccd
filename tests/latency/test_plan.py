"""The plan of a measurement: contradictions, and the time that its parts may take."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from edgevit.errors import UsageError
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.progress import MeasureProgress


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: MeasurePlan(min_runs=0),
        lambda: MeasurePlan(min_duration_s=10, max_duration_s=5),
        lambda: MeasurePlan(min_duration_s=math.inf, max_duration_s=math.inf),
        lambda: MeasurePlan(max_duration_s=math.inf),
        lambda: MeasurePlan(min_duration_s=math.nan),
        lambda: MeasurePlan(max_duration_s=math.nan),
        lambda: MeasurePlan(turn_s=-1),
        lambda: MeasurePlan(turn_s=math.nan),
        lambda: MeasurePlan(warmup_max_s=math.inf),
        lambda: MeasurePlan(warmup_window_runs=0),
        lambda: MeasurePlan(max_total_s=0),
        lambda: MeasurePlan(extension=0.5),
        lambda: MeasurePlan(max_total_s=math.nan),
        lambda: MeasurePlan(max_total_s=math.inf),
    ],
)
def test_contradictions_are_usage_errors(attempt: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        attempt()


@pytest.mark.parametrize(
    ("max_total_s", "elapsed_s", "limit_s"),
    [(None, 50.0, 30.0), (100.0, 50.0, 30.0), (60.0, 50.0, 10.0), (40.0, 50.0, 0.0)],
)
def test_the_rounds_may_take_what_the_warm_up_leaves(
    max_total_s: float | None, elapsed_s: float, limit_s: float
) -> None:
    plan = MeasurePlan(min_duration_s=5, max_duration_s=10, max_total_s=max_total_s)
    assert plan.rounds_limit_s(3, elapsed_s=elapsed_s) == limit_s


def test_progress_in_words_has_the_time_that_remains_if_it_is_known() -> None:
    assert str(MeasureProgress("warm-up of torch", 0.5, None)) == "warm-up of torch, 50%"
    assert str(MeasureProgress("measuring", 0.25, 30.4)) == "measuring, 25%, 30 s left"
