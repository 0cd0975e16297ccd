"""The protocol: who runs when, when it ends, and what makes it refuse. Times are simulated where they must be exact."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edgevit.errors import MeasureError, UsageError
from edgevit.latency import clock, compare
from edgevit.latency.measure import (
    Candidate,
    MeasurePlan,
    candidate_from_callable,
    candidate_from_engine,
    measure,
)
from edgevit.runtimes.base import Engine
from edgevit.runtimes.loading import timed_load
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, TensorSpec

ANSWER = np.zeros(10, np.float32)
QUICK = MeasurePlan(
    min_runs=20, min_duration_s=0.1, max_duration_s=20, warmup_window_s=0.01, warmup_max_s=0.5, settle_s=0, turn_s=0.01
)


@dataclasses.dataclass
class SimulatedTime:
    """A clock that moves by a nanosecond a reading, and by what the simulated inferences take."""

    ns: int = 0
    log: list[str] = dataclasses.field(default_factory=list)
    slowness: Callable[[int], float] = lambda _: 1.0

    def __call__(self) -> int:
        self.ns += 1
        return self.ns

    def inference(self, name: str, ms: float) -> Callable[[], object]:
        def infer() -> object:
            self.log.append(name)
            self.ns += round(1e6 * ms * self.slowness(self.ns))
            return ANSWER

        return infer


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SimulatedTime:
    simulated = SimulatedTime()
    monkeypatch.setattr(clock, "now_ns", simulated)
    return simulated


def work(units: int) -> Callable[[], object]:
    values = np.full(20_000, 0.5, np.float32)

    def infer() -> object:
        for _ in range(20 * units):
            values * values
        return ANSWER

    return infer


def test_more_work_is_ranked_slower_by_the_real_clock() -> None:
    # Many short turns: the neighbours of a busy machine hit some of them, and the median of the ratios the others.
    plan = dataclasses.replace(QUICK, min_runs=150, turn_s=0)
    reports = measure([Candidate(name=f"{units}", infer=work(units)) for units in (2, 1, 6)], plan)
    _, half, triple = compare.side_by_side(reports)
    assert half.ratio is not None and half.ratio.interval is not None and half.ratio.interval.high < 1
    assert triple.ratio is not None and triple.ratio.interval is not None and triple.ratio.interval.low > 1


def test_a_machine_that_slows_down_midway_leaves_the_ratio_alone(time: SimulatedTime) -> None:
    # It slows down for good at 1.7 s, when half of the rounds are over.
    time.slowness = lambda ns: 1.0 if ns < 1.7e9 else 2.0
    first, second = measure(
        [Candidate(name="a", infer=time.inference("a", 2.0)), Candidate(name="b", infer=time.inference("b", 2.2))],
        MeasurePlan(min_runs=10, min_duration_s=1),
    )
    assert (first.drift, second.drift) == pytest.approx((2, 2), rel=0.01)
    assert "the second half took 2.00 times the first" in first.warnings
    ratio = compare.side_by_side((first, second))[1].ratio
    assert ratio is not None and ratio.value == pytest.approx(1.1, rel=0.01)
    # What a tool would say that measures b after a, on the same machine.
    assert np.median(second.samples_ms[-100:]) / np.median(first.samples_ms[:100]) > 2


def test_rounds_interleave_in_an_order_that_the_seed_decides(time: SimulatedTime) -> None:
    names = ("a", "b", "c")

    def turns(seed: int) -> list[str]:
        time.log.clear()
        plan = MeasurePlan(min_runs=30, min_duration_s=0, seed=seed, settle_s=0, turn_s=0)
        reports = measure([Candidate(name=name, infer=time.inference(name, 1.0)) for name in names], plan)
        assert [report.runs for report in reports] == [30, 30, 30]
        return time.log[-180::2]  # the rounds alone: each turn an unrecorded run and a recorded one

    order = turns(seed=0)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 90, 3)]
    assert all(set(round_) == set(names) for round_ in rounds)
    assert len(set(rounds)) > 1
    assert turns(seed=0) == order and turns(seed=1) != order


def test_every_contestant_gets_enough_runs_and_enough_time(time: SimulatedTime) -> None:
    plan = MeasurePlan(min_runs=50, min_duration_s=1)
    fast, slow = measure(
        [
            Candidate(name="fast", infer=time.inference("fast", 1.0)),
            Candidate(name="slow", infer=time.inference("slow", 100.0)),
        ],
        plan,
    )
    assert slow.runs == 50 and sum(slow.samples_ms) >= 1000  # one run a turn
    assert fast.runs == 50 * 50 and sum(fast.samples_ms) >= 1000  # 50 ms a turn
    assert not any(doubt.startswith("stopped") for doubt in fast.warnings + slow.warnings)
    assert list(fast.starts_ns) == sorted(fast.starts_ns) and fast.starts_ns[0] >= 0
    assert len(fast.round_ms) == len(slow.round_ms) == 50
    assert slow.p50_ms == pytest.approx(100)


def test_the_run_before_is_given_time_to_fade(time: SimulatedTime) -> None:
    plan = MeasurePlan(min_runs=10, min_duration_s=0, settle_s=0.02, turn_s=0.01)
    (report,) = measure([Candidate(name="a", infer=time.inference("a", 1.0))], plan)
    first_of_turns = [start for start, number in zip(report.starts_ns, report.rounds, strict=True) if number == 0]
    assert report.runs == 10 and first_of_turns[0] >= 20e6


def test_a_warm_up_ends_when_the_times_stop_falling(time: SimulatedTime) -> None:
    time.slowness = lambda ns: max(1.0, 10 - 9 * ns / 1e9)  # ten times slower at first, at its pace after a second
    (report,) = measure([Candidate(name="a", infer=time.inference("a", 1.0))], MeasurePlan(min_duration_s=0.1))
    assert report.steady and report.p50_ms == pytest.approx(1) and report.drift == pytest.approx(1)


def test_a_warm_up_that_never_settles_ends_and_says_so(time: SimulatedTime) -> None:
    time.slowness = lambda ns: 1 + (ns // 100_000_000) % 2  # another pace every 100 ms
    plan = MeasurePlan(min_duration_s=0.1, warmup_max_s=3)
    (report,) = measure([Candidate(name="a", infer=time.inference("a", 1.0))], plan)
    assert not report.steady and 1500 < report.warmup_runs <= 3000
    assert "the warm-up did not settle within 3 s" in report.warnings


def test_too_slow_for_the_runs_asked_for_is_not_measurable(time: SimulatedTime) -> None:
    slow = Candidate(name="slow", infer=time.inference("slow", 300.0))
    with pytest.raises(MeasureError, match=r"slow ran \d+ of 100 times in the 10 s .* raise max_duration_s or lower"):
        measure([slow], MeasurePlan(max_duration_s=10))


def test_enough_runs_in_too_little_time_are_reported_with_the_doubt(time: SimulatedTime) -> None:
    slow = Candidate(name="slow", infer=time.inference("slow", 300.0))
    (report,) = measure([slow], MeasurePlan(min_runs=5, min_duration_s=10, max_duration_s=10))
    assert report.runs >= 5 and any(doubt.startswith("stopped after") for doubt in report.warnings)


def test_a_clock_that_is_too_coarse_for_the_inference_is_refused() -> None:
    with pytest.raises(MeasureError, match=r"takes \d+ ns and the clock ticks every \d+ ns; measure a larger batch"):
        measure([Candidate(name="nothing", infer=lambda: ANSWER)], QUICK)


def with_nan_after(runs: int) -> Callable[[], object]:
    answers = iter([ANSWER] * runs + [np.full(10, np.nan, np.float32)] * 100_000)
    slow = work(1)

    def infer() -> object:
        slow()
        return next(answers)

    return infer


def failing() -> object:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (with_nan_after(0), "NaN or infinity"),
        (lambda: {"logits": np.array([1.0, np.inf])}, "NaN or infinity"),
        (lambda: [ANSWER, np.array([np.nan])], "NaN or infinity"),
        (failing, r"an inference of x failed \(out of memory\)"),
        (lambda: None, "answers with NoneType"),  # perhaps only started, not computed
        (dict, "answers with NoneType"),
        (lambda: [0.5], "answers with float"),
    ],
)
def test_an_inference_without_a_proper_answer_is_not_measurable(infer: Callable[[], object], message: str) -> None:
    for attempt in (
        lambda: measure([Candidate(name="x", infer=infer)], QUICK),
        lambda: candidate_from_callable("x", infer),
    ):
        with pytest.raises(MeasureError, match=message) as caught:
            attempt()
        assert caught.value.exit_status == 7


def test_an_answer_that_turns_nan_midway_is_caught() -> None:
    with pytest.raises(MeasureError, match="NaN or infinity"):
        measure([Candidate(name="x", infer=with_nan_after(10))], QUICK)


def test_the_collector_rests_while_it_is_timed_and_works_afterwards() -> None:
    slow, seen = work(1), set()

    def infer() -> object:
        seen.add(gc.isenabled())
        return slow()

    measure([Candidate(name="x", infer=infer)], QUICK)
    assert seen == {False} and gc.isenabled()
    with pytest.raises(MeasureError):
        measure([Candidate(name="x", infer=failing)], QUICK)
    assert gc.isenabled()


class Sums(Engine):
    """A real, small engine: the sum of each image."""

    fmt = "numpy"
    inputs = (TensorSpec("images", "float32", ("batch", 3, 64, 64)),)
    outputs = (TensorSpec("sums", "float32", ("batch",)),)

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"sums": np.asarray(feeds["images"], np.float32).sum((1, 2, 3))}

    def executed_precision(self) -> ExecutedPrecision:
        return ExecutedPrecision({"fp32": 1})


def test_an_engine_joins_with_what_its_feeds_and_its_loading_say() -> None:
    engine, loading = timed_load(Sums)
    feeds = {"images": np.ones((4, 3, 64, 64), np.float32)}
    loading = dataclasses.replace(loading, peak_memory_mb=123.0)
    joined = candidate_from_engine("sums", engine, feeds, threads=1, loading=loading, details={"precision": "fp32"})
    (report,) = measure([joined], QUICK)
    assert (report.batch, report.input_shapes, report.threads) == (4, {"images": (4, 3, 64, 64)}, 1)
    assert report.details == {"precision": "fp32"} and report.measured_with == ()
    assert report.load_s == loading.load_s and report.load_s > 0
    assert report.first_inference_ms is not None and report.first_inference_ms > 0
    assert report.peak_memory_mb == 123
    assert report.throughput_per_s == pytest.approx(4e3 * report.runs / sum(report.samples_ms))
    assert len(report.probes) >= 2 and report.clock_resolution_ns >= 1


def test_feeds_that_the_engine_does_not_take_are_the_users_error() -> None:
    with pytest.raises(UsageError, match="float32"):
        candidate_from_engine("sums", Sums(), {"images": np.ones((4, 3, 64, 64))})
    with pytest.raises(UsageError, match="images"):
        candidate_from_engine("sums", Sums(), {})


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: measure([]),
        lambda: measure([Candidate(name="x", infer=failing)] * 2),
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
    ],
)
def test_contradictions_are_refused_at_the_door(attempt: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        attempt()


def test_progress_is_told_from_start_to_end(time: SimulatedTime) -> None:
    told: list[tuple[str, float]] = []
    plan = MeasurePlan(min_duration_s=2.2)
    measure(
        [Candidate(name="a", infer=time.inference("a", 5.0))], plan, lambda stage, share: told.append((stage, share))
    )
    assert told[0] == ("warm-up of a", 0) and told[-1] == ("measuring", 1.0)
    shares = [share for stage, share in told if stage == "measuring"]
    assert len(shares) >= 3 and shares == sorted(shares)
