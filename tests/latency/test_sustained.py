"""The verdict on a sustained run."""

from __future__ import annotations

import pytest

from edgevit.latency.sustained import SustainedRun


@pytest.mark.parametrize(("last", "steady"), [(100.0, True), (96.0, True), (90.0, False), (110.0, False)])
def test_a_run_is_steady_if_its_last_ten_seconds_are_as_fast_as_its_first(last: float, steady: bool) -> None:
    run = SustainedRun(batch=1, seconds=(100.0,) * 10 + (50.0,) * 40 + (last,) * 10)
    assert run.window_s == 10 and run.change == pytest.approx(last / 100)
    assert run.steady is steady


def test_a_short_run_is_judged_by_thirds() -> None:
    assert SustainedRun(batch=1, seconds=(8.0, 8.0, 6.0, 6.0, 4.0, 4.0)).change == 0.5
