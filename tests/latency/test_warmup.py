"""The warm-up ends when pace and clock are steady, and does not wait for the clock forever. Time is simulated."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from edgevit.latency import clock
from edgevit.latency import measure as measurement
from edgevit.latency.candidate import Candidate
from edgevit.latency.measure import measure
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.sampling.channel import Channel, Source
from edgevit.latency.sampling.sampler import Sampler
from edgevit.latency.warmup import Warmup, warm_up

PLAN = MeasurePlan(min_runs=10, min_duration_s=0.5)


class Machine:
    """A machine on which every inference takes 10 ms, and whose core has the clock that `mhz` gives for a time in s."""

    def __init__(self, mhz: Callable[[float], float] | None) -> None:
        self.ns = 0
        sources = [] if mhz is None else [Source((Channel("cpu0", "clock"),), lambda: [mhz(self.ns / 1e9)])]
        self.sampler = Sampler(sources, "ab", now_ns=self.now)

    def now(self) -> int:
        self.ns += 1
        return self.ns

    def infer(self) -> object:
        while self.sampler.busy:  # the sampler's thread works in real time
            pass
        self.ns += 10_000_000
        return np.zeros(1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float] | None], Machine]:
    def make(mhz: Callable[[float], float] | None) -> Machine:
        made = Machine(mhz)
        monkeypatch.setattr(clock, "now_ns", made.now)
        monkeypatch.setattr(measurement, "device_sampler", lambda _names, **_options: made.sampler)
        return made

    return make


def warmed_up(made: Machine) -> Warmup:
    with made.sampler:
        return warm_up(Candidate(name="a", infer=made.infer), PLAN, max_s=20, sampler=made.sampler, index=0)


def floating() -> Callable[[float], float]:
    values = itertools.cycle((800.0, 3600.0))
    return lambda _seconds: next(values)


def test_without_a_clock_the_pace_decides(machine: Callable[..., Machine]) -> None:
    found = warmed_up(machine(None))
    assert (found.runs, found.steady, found.clock_steady) == (30, True, None)  # three windows of 0.1 s


def test_the_warm_up_waits_for_a_clock_that_rises(machine: Callable[..., Machine]) -> None:
    found = warmed_up(machine(lambda seconds: min(3600.0, 800 + 2800 * seconds)))
    assert found.steady and found.clock_steady and 100 < found.runs < 180  # the clock rises for a second


def test_a_floating_clock_is_waited_for_three_seconds(machine: Callable[..., Machine]) -> None:
    found = warmed_up(machine(floating()))
    assert found.steady and found.clock_steady is False and 325 <= found.runs <= 345


def measured(made: Machine, names: str) -> tuple[LatencyReport, ...]:
    return measure([Candidate(name=name, infer=made.infer) for name in names], PLAN)


def test_an_engine_whose_clock_varies_in_turns_is_measured_alone_too(machine: Callable[..., Machine]) -> None:
    reports = measured(machine(floating()), "ab")
    assert [report.alone_p50_ms for report in reports] == pytest.approx([10, 10], rel=1e-6)
    assert all(90 <= len(report.alone_ms) <= 102 for report in reports)  # the second of two seconds
    assert "the clock did not settle within 3 s" in reports[0].warnings
    assert "the clocks varied meanwhile: fastest core 800 to 3600 MHz" in reports[0].warnings


@pytest.mark.parametrize(("mhz", "names"), [(lambda _: 3600.0, "ab"), (None, "ab"), (floating(), "a")])
def test_an_engine_with_a_steady_clock_or_without_others_is_not(
    mhz: Callable[[float], float] | None, names: str, machine: Callable[..., Machine]
) -> None:
    assert all(report.alone_ms == () for report in measured(machine(mhz), names))
