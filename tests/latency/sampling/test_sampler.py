"""The sampler: when it reads, what it keeps, and that a sensor ends nothing but the sampling."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgevit.errors import UsageError
from edgevit.latency.sampling.channel import Channel, Source
from edgevit.latency.sampling.sampler import Sampler, device_sampler
from edgevit.latency.sampling.trace import NOBODY, DeviceTrace
from tests.fakes.machines import ORIN, write_root

CLOCK = Channel("17000000.gpu", "clock")


class Clock:
    """A clock that a test sets, in seconds."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> int:
        return round(1e9 * self.s)


def source(*values: float | None, channel: Channel = CLOCK) -> Source:
    """A source that gives these values one after another; the first twice, since the sampler tries it first."""
    left = [values[0], *values]
    return Source((channel,), lambda: [left.pop(0) if len(left) > 1 else left[0]])


def ask(sampler: Sampler, candidate: int) -> None:
    sampler.request(candidate)
    while sampler.busy:
        time.sleep(0.0001)


def traced(sampler: Sampler) -> DeviceTrace:
    trace = sampler.trace(round(100e9))
    assert trace is not None
    return trace


def test_samples_are_an_interval_apart_and_know_who_worked() -> None:
    now = Clock()
    with Sampler([source(306, 1300, 1290, 1280, 306)], "ab", interval_s=0.2, now_ns=now) as sampler:
        for seconds, candidate in ((0.1, 0), (0.2, 0), (0.3, 1), (0.41, 1), (0.62, 0)):
            now.s = 100 + seconds
            ask(sampler, candidate)
        now.s = 101.0
    trace = traced(sampler)
    assert trace.starts_ns == (0, 200_000_000, 410_000_000, 620_000_000, 1_000_000_000)
    assert trace.candidates == (NOBODY, 0, 1, 0, NOBODY)
    assert trace.series[0].values == (306, 1300, 1290, 1280, 306)
    assert trace.samples_of("a") == (1, 3) and trace.samples_of("other") == ()
    assert trace.spread("a", "clock") == {"17000000.gpu": (1280, 1290, 1300)}
    assert trace.rate_hz == pytest.approx(2 / 0.42) and trace.cost_ms == 0
    later = sampler.trace(round(100.5e9))
    assert later is not None and later.samples_of("a") == (3,)  # the others were of the warm-up


def test_a_candidate_with_more_samples_leaves_its_turn_to_another() -> None:
    now = Clock()
    with Sampler([source(1)], "ab", interval_s=0.2, now_ns=now) as sampler:
        for candidate in (0, 0, 1, 0, 0, 0):
            now.s += 0.25
            ask(sampler, candidate)
    assert traced(sampler).candidates == (NOBODY, 0, 1, 0, 0, NOBODY)


def test_a_request_during_a_sample_changes_nothing() -> None:
    answer = threading.Event()

    def read() -> Sequence[float]:
        if threading.current_thread().name == "edgevit-sampler":
            answer.wait(10)
        return [1.0]

    with Sampler([Source((CLOCK,), read)], "ab", interval_s=0) as sampler:
        sampler.request(0)
        sampler.request(1)
        answer.set()
        while sampler.busy:
            time.sleep(0.0001)
    assert traced(sampler).candidates == (NOBODY, 0, NOBODY)


def test_reading_takes_place_in_another_thread() -> None:
    threads: list[str] = []

    def read() -> Sequence[float]:
        threads.append(threading.current_thread().name)
        return [1.0]

    with Sampler([Source((CLOCK,), read)], "a", interval_s=0) as sampler:
        ask(sampler, 0)
    assert threads.count("edgevit-sampler") == 1
    assert "edgevit-sampler" not in {thread.name for thread in threading.enumerate()}


def test_a_trace_has_whole_samples_at_every_moment() -> None:
    """The thread reads the clock twice for a sample: a trace at that moment has the sample or has it not."""
    seen: list[int] = []

    def now_ns() -> int:
        if running:
            seen.append(len(traced(sampler).starts_ns))
        return 0

    running = False
    sampler = Sampler([source(1)], "a", interval_s=0, now_ns=now_ns)
    running = True
    sampler.take(0)
    sampler.take(0)
    assert seen == [0, 0, 1, 1]


def test_absent_channels_are_left_out_and_a_gap_stays_a_gap() -> None:
    gaps = source(306, None, 1300)
    with Sampler([source(None), gaps], "a", interval_s=0) as sampler:
        ask(sampler, 0)
        ask(sampler, 0)
    (series,) = traced(sampler).series
    assert series.values == (306, None, 1300, 1300)


def test_a_device_without_sensors_has_no_trace_and_no_thread() -> None:
    before = threading.active_count()
    with Sampler([source(None)], "a") as sampler:
        sampler.request(0)
        assert not sampler.busy and threading.active_count() == before
    assert sampler.trace(0) is None


def test_a_sensor_that_fails_ends_the_sampling_only() -> None:
    def read() -> Sequence[float]:
        if threading.current_thread().name == "edgevit-sampler":
            raise RuntimeError("no answer\nfrom the bus")
        return [1.0]

    with Sampler([Source((CLOCK,), read)], "a", interval_s=0) as sampler:
        ask(sampler, 0)
        ask(sampler, 0)
    assert traced(sampler).problem == "a sensor failed (no answer)"
    assert len(traced(sampler).starts_ns) == 1


def test_a_sensor_that_hangs_is_waited_for_two_seconds() -> None:
    now, begun, answer = Clock(), threading.Event(), threading.Event()

    def read() -> Sequence[float]:
        if threading.current_thread().name == "edgevit-sampler":
            begun.set()
            answer.wait(10)
        return [1.0]

    with Sampler([Source((CLOCK,), read)], "a", interval_s=0, now_ns=now) as sampler:
        sampler.request(0)
        begun.wait(10)
        now.s += 1.9
        assert sampler.busy
        now.s += 0.2
        assert not sampler.busy
        answer.set()
    trace = traced(sampler)
    assert trace.problem == "the device's sensors did not answer in time" and len(trace.starts_ns) == 1


def test_throttling_while_an_engine_works_is_seen() -> None:
    def trace(*series: Source) -> DeviceTrace:
        with Sampler(series, "a", interval_s=0) as sampler:
            ask(sampler, 0)
        return traced(sampler)

    limit, events = Channel("cooling_device1", "limit"), Channel("oc2_event_cnt", "throttle")
    held, spikes = Channel("gpu 0 power cap", "throttle_time"), Channel("oc3_event_cnt", "spikes")
    assert trace(source(0, 2, 0, channel=limit)).throttle_causes == ("cooling_device1 at 2",)
    assert trace(source(15, 15, 18, channel=events)).throttle_causes == ("oc2_event_cnt +3",)
    assert trace(source(7, 9.5, channel=held)).throttle_causes == ("gpu 0 power cap +2.5 ms",)
    assert trace(source(0, channel=limit), source(1, 27390, channel=spikes)).throttle_causes == ()
    assert trace(source(1, 27390, channel=spikes)).throttle_causes is None
    assert trace(source(2, 0, 2, channel=limit)).throttle_causes == ()  # while nothing ran


def test_the_clock_that_matters_depends_on_the_engine() -> None:
    cores = [source(*values, channel=Channel(name, "clock")) for name, values in (
        ("cpu0", (800, 3600, 800, 800)), ("cpu1", (800, 800, 3500, 800)),
    )]  # fmt: skip
    with Sampler([*cores, source(306, 306, 1300)], "a", interval_s=0) as sampler:
        ask(sampler, 0)
        ask(sampler, 0)
    trace = traced(sampler)
    assert trace.clock_ranges("a", on_gpu=False) == {"fastest core": (3500, 3600)}
    assert trace.clock_ranges("a", on_gpu=True) == {"17000000.gpu": (306, 1300)}


def test_a_trace_is_unchanged_by_json_and_a_constant_is_stored_once(tmp_path: Path) -> None:
    with device_sampler("ab", interval_s=0, root=write_root(tmp_path, ORIN)) as sampler:
        ask(sampler, 0)
        (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("918000000")
        ask(sampler, 1)
    trace = traced(sampler)
    text = json.dumps(trace.to_json(), allow_nan=False)
    assert DeviceTrace.from_json(json.loads(text)) == trace
    stored = {series["name"]: series["values"] for series in json.loads(text)["series"]}
    assert stored["17000000.gpu"] == [1300.5, 1300.5, 918, 918] and stored["emc"] == 3199


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data["starts_ns"].pop(),
        lambda data: data.update(candidates=["a"] * 3),
        lambda data: data["series"][0].update(kind="smell"),
        lambda data: data["series"][0].update(values=["fast"] * 3),
        lambda data: data["series"][0].update(values=[1.0]),
    ],
)
def test_a_damaged_trace_is_refused(damage: Callable[[dict[str, object]], object]) -> None:
    with Sampler([source(1, 2, 3)], "a", interval_s=0) as sampler:
        ask(sampler, 0)
    data = json.loads(json.dumps(traced(sampler).to_json()))
    assert DeviceTrace.from_json(data) == traced(sampler)
    damage(data)
    with pytest.raises(UsageError, match="device trace"):
        DeviceTrace.from_json(data)
