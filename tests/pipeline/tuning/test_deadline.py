"""The time limit of a search, with a clock of our own."""

from __future__ import annotations

import pytest

from edgevit.pipeline.tuning.deadline import Deadline, OutOfTimeError


def test_the_reserve_is_kept_for_the_finals() -> None:
    now = [100.0]
    deadline = Deadline(60.0, reserve_s=15.0, clock=lambda: now[0])
    now[0] = 140.0
    assert (deadline.elapsed_s, deadline.remaining_s, deadline.search_s) == (40.0, 20.0, 5.0)
    deadline.check()
    now[0] = 146.0
    with pytest.raises(OutOfTimeError):
        deadline.check()
    assert deadline.remaining_s == 14.0


def test_time_before_the_search_counts() -> None:
    assert Deadline(60.0, start_s=80.0, clock=lambda: 100.0).remaining_s == 40.0


def test_a_step_may_end_earlier_than_the_search() -> None:
    now = [0.0]
    deadline = Deadline(100.0, clock=lambda: now[0])
    now[0] = 60.0
    with deadline.until(0.5), pytest.raises(OutOfTimeError):
        deadline.check()
    deadline.check()


def test_an_interrupt_shortens_the_rest() -> None:
    deadline = Deadline(600.0, clock=lambda: 0.0)
    deadline.shorten(20.0)
    deadline.shorten(50.0)
    assert deadline.remaining_s == 20.0
