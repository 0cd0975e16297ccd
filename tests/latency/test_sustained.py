"""The verdict on a sustained run."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.errors import MeasureError
from edgevit.latency import clock
from edgevit.latency.candidate import Candidate
from edgevit.latency.sustained import SustainedRun, run_sustained
from tests.helpers.samples import OUTPUT


class SlowingEngine:
    """Inferences of 10 ms that take twice as long after 15 s of simulated time."""

    def __init__(self, ms: float = 10.0) -> None:
        self.ns, self.ms = 0, ms

    def now_ns(self) -> int:
        return self.ns

    def infer(self) -> object:
        self.ns += round(1e6 * self.ms * (1 if self.ns < 15e9 else 2))
        return OUTPUT


def test_images_are_counted_in_each_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine, shown = SlowingEngine(), list[float]()
    monkeypatch.setattr(clock, "now_ns", engine.now_ns)
    candidate = Candidate(name="a", infer=engine.infer, batch=2)
    run = run_sustained(candidate, 30.0, on_second=shown.append, root=tmp_path)  # without a sensor
    assert run.duration_s == 30 and shown[-1] == 1.0
    assert run.first_per_s == pytest.approx(200, rel=0.01) and run.last_per_s == pytest.approx(100, rel=0.01)
    assert not run.steady and run.first_clock_mhz is None


def test_an_engine_slower_than_a_second_has_no_sustained_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = SlowingEngine(ms=2500.0)
    monkeypatch.setattr(clock, "now_ns", engine.now_ns)
    with pytest.raises(MeasureError, match="less than once a second"):
        run_sustained(Candidate(name="a", infer=engine.infer), 9.0, root=tmp_path)
    assert engine.ns == 2500e6  # known after one inference


@pytest.mark.parametrize(("last", "steady"), [(100.0, True), (96.0, True), (90.0, False), (110.0, False)])
def test_a_run_is_steady_if_its_last_ten_seconds_are_as_fast_as_its_first(last: float, steady: bool) -> None:
    run = SustainedRun(batch=1, images_per_s=(100.0,) * 10 + (50.0,) * 40 + (last,) * 10)
    assert run.window_s == 10 and run.change == pytest.approx(last / 100)
    assert run.steady is steady


def test_a_short_run_is_judged_by_thirds() -> None:
    assert SustainedRun(batch=1, images_per_s=(8.0, 8.0, 6.0, 6.0, 4.0, 4.0)).change == 0.5
