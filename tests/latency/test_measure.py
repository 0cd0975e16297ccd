"""The measurement: order of the runs, its end, and its errors. Times are simulated if they must be exact."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgevit.cli.latency_output import latency_parts
from edgevit.errors import MeasureError, UsageError
from edgevit.latency import clock, compare, statistics
from edgevit.latency import measure as measurement
from edgevit.latency.candidate import Candidate, candidate_from_callable, candidate_from_engine
from edgevit.latency.environment import MachineState
from edgevit.latency.measure import measure
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.progress import MeasureProgress
from edgevit.latency.sampling.channel import Channel, Source
from edgevit.latency.sampling.sampler import Sampler
from edgevit.runtimes.base import Engine
from edgevit.runtimes.loading import timed_load
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, TensorSpec
from tests.fakes.machines import ORIN, write_root
from tests.helpers import samples
from tests.helpers.samples import OUTPUT, QUICK, work


@dataclasses.dataclass
class SimulatedTime:
    """A clock that advances by a nanosecond per reading, and by the times of simulated inferences."""

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
            return OUTPUT

        return infer


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SimulatedTime:
    simulated = SimulatedTime()
    monkeypatch.setattr(clock, "now_ns", simulated)
    # Reading sensors takes real time, during which simulated inferences would go on.
    monkeypatch.setattr(measurement, "device_sampler", lambda names, **_: Sampler([], names))
    return simulated


def test_more_work_is_ranked_slower_by_the_real_clock() -> None:
    # Many short turns: other processes disturb some of them, but not the median of the ratios.
    plan = dataclasses.replace(QUICK, min_runs=150, turn_s=0)
    reports = measure([Candidate(name=f"{units}", infer=work(units)) for units in (2, 1, 6)], plan)
    _, half, triple = compare.side_by_side(reports)
    assert half.ratio is not None and half.ratio.interval is not None and half.ratio.interval.high < 1
    assert triple.ratio is not None and triple.ratio.interval is not None and triple.ratio.interval.low > 1


def test_the_time_on_the_gpu_of_each_sample_is_kept(time: SimulatedTime) -> None:
    times = iter(range(1, 10**6))
    gpu = Candidate(name="gpu", infer=time.inference("gpu", 2.0), compute_ms=lambda: float(next(times)))
    lost = Candidate(name="lost", infer=time.inference("lost", 2.0), compute_ms=lambda: None)
    first, second, third = measure([gpu, lost, Candidate(name="cpu", infer=time.inference("cpu", 2.0))], QUICK)
    assert first.compute_ms == tuple(map(float, range(1, first.runs + 1)))  # not of the unrecorded runs
    assert second.compute_ms == third.compute_ms == ()


def test_a_slowdown_of_the_machine_midway_does_not_change_the_ratio(time: SimulatedTime) -> None:
    # It slows down for good at 1.7 s, after half of the rounds.
    time.slowness = lambda ns: 1.0 if ns < 1.7e9 else 2.0
    first, second = measure(
        [Candidate(name="a", infer=time.inference("a", 2.0)), Candidate(name="b", infer=time.inference("b", 2.2))],
        MeasurePlan(min_runs=10, min_duration_s=1),
    )
    assert (first.drift, second.drift) == pytest.approx((2, 2), rel=0.01)
    assert "the second half took 2.00 times the first" in first.warnings
    ratio = compare.side_by_side((first, second))[1].ratio
    assert ratio is not None and ratio.value == pytest.approx(1.1, rel=0.01)
    # The result of measuring b after a on the same machine.
    assert np.median(second.samples_ms[-100:]) / np.median(first.samples_ms[:100]) > 2


def test_rounds_interleave_in_an_order_drawn_from_the_seed(time: SimulatedTime) -> None:
    names = ("a", "b", "c")

    def turns(seed: int) -> list[str]:
        time.log.clear()
        plan = MeasurePlan(min_runs=30, min_duration_s=0, seed=seed, settle_s=0, turn_s=0)
        reports = measure([Candidate(name=name, infer=time.inference(name, 1.0)) for name in names], plan)
        assert [report.runs for report in reports] == [30, 30, 30]
        return time.log[-180::2]  # only the rounds: each turn is an unrecorded and a recorded run

    order = turns(seed=0)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 90, 3)]
    assert all(set(round_) == set(names) for round_ in rounds)
    assert len(set(rounds)) > 1
    assert turns(seed=0) == order and turns(seed=1) != order


def test_every_candidate_gets_enough_runs_and_enough_time(time: SimulatedTime) -> None:
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
    assert not any(warning.startswith("stopped") for warning in fast.warnings + slow.warnings)
    assert list(fast.starts_ns) == sorted(fast.starts_ns) and fast.starts_ns[0] >= 0
    assert len(fast.round_ms) == len(slow.round_ms) == 50
    assert slow.p50_ms == pytest.approx(100)


@pytest.mark.parametrize(
    ("noise", "slowdown", "rounds"),
    [(0.1, 1.0, 48), (0.01, 1.0, 16), (0.1, 2.0, 16), (0.15, 1.2, 48)],
    ids=["wide", "narrow", "clear", "clear later"],
)
def test_rounds_go_on_only_if_a_wide_interval_cannot_tell(
    noise: float, slowdown: float, rounds: int, time: SimulatedTime
) -> None:
    random = np.random.default_rng(0)
    time.slowness = lambda _: random.lognormal(0, noise)
    candidates = [
        Candidate(name=name, infer=time.inference(name, ms)) for name, ms in (("a", 5.0), ("b", 5.0 * slowdown))
    ]
    plan = MeasurePlan(min_runs=1, min_duration_s=0, turn_s=0, extension=3.0)
    reports = measure(candidates, plan)
    ratio = compare.side_by_side(reports)[1].ratio
    assert ratio is not None and ratio.rounds == rounds
    assert ratio.verdict == ("slower" if slowdown > 1 else "cannot tell")


def test_a_measurement_that_may_look_twice_shares_the_error_between_its_looks() -> None:
    """With 9 rounds, the interval of 99.5 % is that from the fastest to the slowest."""
    assert MeasurePlan().confidence == 0.99 and MeasurePlan(extension=2).confidence == 0.995
    values = np.exp(np.arange(9.0))
    interval = statistics.paired_ratio(values, np.ones(9), confidence=0.995).interval
    assert interval is not None and (interval.low, interval.high) == pytest.approx((1, np.exp(8)))
    few = statistics.paired_ratio(values[:8], np.ones(8), confidence=0.995)
    assert few.interval is None and few.reason == "an interval needs 9 rounds, not 8"


def test_a_turn_starts_with_unrecorded_runs(time: SimulatedTime) -> None:
    plan = MeasurePlan(min_runs=10, min_rounds=1, min_duration_s=0, settle_s=0.02, turn_s=0.01)
    (report,) = measure([Candidate(name="a", infer=time.inference("a", 1.0))], plan)
    first_of_turns = [start for start, number in zip(report.starts_ns, report.rounds, strict=True) if number == 0]
    assert report.runs == 10 and first_of_turns[0] >= 20e6


def test_a_warm_up_ends_at_a_constant_pace(time: SimulatedTime) -> None:
    time.slowness = lambda ns: max(1.0, 10 - 9 * ns / 1e9)  # ten times slower at first, constant after a second
    (report,) = measure([Candidate(name="a", infer=time.inference("a", 1.0))], MeasurePlan(min_duration_s=0.1))
    assert report.steady and report.p50_ms == pytest.approx(1) and report.drift == pytest.approx(1)


def test_a_warm_up_that_never_settles_ends_with_a_warning(time: SimulatedTime) -> None:
    time.slowness = lambda ns: 1 + (ns // 100_000_000) % 2  # the pace changes every 100 ms
    plan = MeasurePlan(min_duration_s=0.1, warmup_max_s=3)
    (report,) = measure([Candidate(name="a", infer=time.inference("a", 1.0))], plan)
    assert not report.steady and 1500 < report.warmup_runs <= 3000
    assert "the warm-up did not settle within 3 s" in report.warnings


def test_a_slow_candidate_gets_fewer_runs_and_a_warning(time: SimulatedTime) -> None:
    slow = Candidate(name="slow", infer=time.inference("slow", 300.0))
    (report,) = measure([slow], MeasurePlan(max_duration_s=10))
    assert 10 <= report.runs < 100 and f"stopped after {report.runs} of 100 runs" in report.warnings
    assert report.p50_ms == pytest.approx(300) and report.p50_interval_ms is not None
    assert report.p90_ms is None  # too few runs for it


def test_enough_runs_in_too_little_time_are_reported_with_a_warning(time: SimulatedTime) -> None:
    slow = Candidate(name="slow", infer=time.inference("slow", 300.0))
    (report,) = measure([slow], MeasurePlan(min_runs=5, min_duration_s=10, max_duration_s=10))
    assert report.runs >= 5 and any(warning.startswith("stopped after") for warning in report.warnings)


@pytest.mark.parametrize("max_total_s", [1.0, 5.0, 60.0])
@pytest.mark.parametrize("slow_ms", [5.0, 40.0, 300.0])
def test_the_whole_measurement_keeps_to_its_time(max_total_s: float, slow_ms: float, time: SimulatedTime) -> None:
    candidates = [
        Candidate(name="fast", infer=time.inference("fast", 1.0)),
        Candidate(name="slow", infer=time.inference("slow", slow_ms)),
    ]
    begin_ns = time.ns
    measure(candidates, MeasurePlan(min_runs=1000, min_duration_s=30, max_total_s=max_total_s))
    assert (time.ns - begin_ns) / 1e9 <= max_total_s + 3 * slow_ms / 1e3  # one warm-up run and one round of it


def test_a_short_measurement_still_has_enough_rounds_for_an_interval(time: SimulatedTime) -> None:
    candidates = [Candidate(name=name, infer=time.inference(name, 5.0)) for name in ("a", "b", "c")]
    plan = MeasurePlan(turn_s=0.15, max_total_s=4)
    _, second, third = compare.side_by_side(measure(candidates, plan))
    assert second.ratio is not None and second.ratio.interval is not None
    assert third.ratio is not None and third.ratio.interval is not None


def test_a_candidate_slower_than_the_whole_time_is_measured_once(time: SimulatedTime) -> None:
    (report,) = measure([Candidate(name="slow", infer=time.inference("slow", 20e3))], MeasurePlan(max_total_s=5))
    assert report.runs == 1 and report.p50_ms == pytest.approx(20e3)
    assert time.log == ["slow", "slow"]  # the warm-up and the recorded run: no unrecorded run is needed


def test_an_inference_too_short_for_the_clock_is_an_error() -> None:
    with pytest.raises(MeasureError, match=r"takes \d+ ns and the clock ticks every \d+ ns; measure a larger batch"):
        measure([Candidate(name="nothing", infer=lambda: OUTPUT)], QUICK)


def test_a_model_of_one_small_layer_is_measured_while_the_clock_is_slow_to_read(
    time: SimulatedTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export measured nothing on a busy machine, where a reading took 60 ns and the engine 5.8 microseconds."""
    monkeypatch.setattr(clock, "resolution_ns", lambda: 60)
    (report,) = measure([Candidate(name="tiny", infer=time.inference("tiny", 0.0058))], QUICK)
    assert report.p50_ms == pytest.approx(0.0058, rel=0.01)


def with_nan_after(runs: int) -> Callable[[], object]:
    outputs = iter([OUTPUT] * runs + [np.full(10, np.nan, np.float32)] * 100_000)
    slow = work(1)

    def infer() -> object:
        slow()
        return next(outputs)

    return infer


def test_logits_of_minus_infinity_are_valid() -> None:
    masked = np.array([1.0, -np.inf, 0.5], np.float32)
    slow = work(1)

    def infer() -> object:
        slow()
        return masked

    (report,) = measure([Candidate(name="masked", infer=infer)], QUICK)
    assert report.runs > 0


def failing() -> object:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (with_nan_after(0), "NaN or infinity"),
        (lambda: {"logits": np.array([1.0, np.inf])}, "NaN or infinity"),
        (lambda: [OUTPUT, np.array([np.nan])], "NaN or infinity"),
        (failing, r"an inference of x failed \(out of memory\)"),
        (lambda: None, "returned NoneType"),  # perhaps only started, not computed
        (dict, "returned NoneType"),
        (lambda: [0.5], "returned float"),
    ],
)
def test_an_inference_without_valid_outputs_is_an_error(infer: Callable[[], object], message: str) -> None:
    for attempt in (
        lambda: measure([Candidate(name="x", infer=infer)], QUICK),
        lambda: candidate_from_callable("x", infer),
    ):
        with pytest.raises(MeasureError, match=message) as caught:
            attempt()
        assert caught.value.exit_status == 7


def test_an_output_that_becomes_nan_midway_is_an_error() -> None:
    with pytest.raises(MeasureError, match="NaN or infinity"):
        measure([Candidate(name="x", infer=with_nan_after(10))], QUICK)


def test_garbage_collection_is_off_during_the_measurement_only() -> None:
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


def test_a_candidate_from_an_engine_has_the_facts_of_its_feeds_and_loading() -> None:
    engine, loading = timed_load(Sums)
    feeds = {"images": np.ones((4, 3, 64, 64), np.float32)}
    loading = dataclasses.replace(loading, peak_memory_mb=123.0)
    candidate = candidate_from_engine("sums", engine, feeds, threads=1, loading=loading, details={"precision": "fp32"})
    (report,) = measure([candidate], QUICK)
    assert (report.batch, report.input_shapes, report.threads) == (4, {"images": (4, 3, 64, 64)}, 1)
    assert report.details == {"precision": "fp32"} and report.measured_with == ()
    assert report.load_s == loading.load_s and report.load_s > 0
    assert report.first_inference_ms is not None and report.first_inference_ms > 0
    assert report.peak_memory_mb == 123
    assert report.throughput_per_s == pytest.approx(4e3 * report.runs / sum(report.samples_ms))
    assert len(report.probes) >= 2 and report.clock_resolution_ns >= 1


class OneThread(Sums):
    """Runs one thread, whatever is requested, as OpenVINO does on one core."""

    @property
    def threads(self) -> int:
        return 1


def test_the_threads_that_run_are_reported_and_not_those_requested() -> None:
    """OpenVINO on one core was reported with 64 threads."""
    feeds = {"images": np.ones((4, 3, 64, 64), np.float32)}
    candidates = [
        candidate_from_engine("one", OneThread(), feeds, threads=64),
        candidate_from_engine("same", OneThread(), feeds, threads=1),
        candidate_from_engine("free", OneThread(), feeds),
        candidate_from_engine("many", Sums(), feeds, threads=1024),
    ]
    one, same, free, many = measure(candidates, QUICK)
    assert [report.threads for report in (one, same, free, many)] == [1, 1, None, 1024]
    assert one.details == {"threads_requested": "64"} and not same.details and not free.details
    assert "runs 1 of the 64 threads requested" in one.warnings
    assert not any("threads" in warning for warning in (*same.warnings, *free.warnings))
    assert any(warning.startswith("its 1024 threads share ") for warning in many.warnings)
    assert "one 1, same 1, free all, many 1024 threads, one process" in str(latency_parts([one, same, free, many])[1])


@pytest.mark.parametrize(
    ("cores", "limit", "expected"),
    [
        ((0, 1, 2, 3), None, []),
        ((0, 1, 2, 3), 4.0, []),
        ((0, 1, 2, 3), 1.5, ["its 4 threads share the time of 1.5 cores, by the CPU limit"]),
        ((0, 1, 2, 3), 1.0, ["its 4 threads share the time of 1 core, by the CPU limit"]),
        ((0, 1), 3.0, ["its 4 threads share 2 cores"]),
        ((0,), None, ["its 4 threads share 1 core"]),
    ],
)
def test_threads_are_held_against_cores_and_the_cpu_limit(
    cores: tuple[int, ...], limit: float | None, expected: list[str]
) -> None:
    board = dataclasses.replace(samples.BOARD, affinity=cores, cpu_limit=limit)
    warnings = samples.report([[2.0]] * 9, environment=board, threads=4).warnings
    assert [warning for warning in warnings if "threads" in warning] == expected


def test_an_engine_that_has_run_before_has_no_first_inference() -> None:
    feeds = {"images": np.ones((1, 3, 64, 64), np.float32)}
    (engine, loading) = timed_load(Sums)
    engine.device_memory_mb = 40.5
    engine.run(feeds)
    candidate = candidate_from_engine("sums", engine, feeds, loading=loading)
    assert (candidate.first_inference_ms, candidate.memory_rise_mb, candidate.device_memory_mb) == (None, None, 40.5)


def test_feeds_that_the_engine_does_not_accept_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="float32"):
        candidate_from_engine("sums", Sums(), {"images": np.ones((4, 3, 64, 64))})
    with pytest.raises(UsageError, match="images"):
        candidate_from_engine("sums", Sums(), {})


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: measure([]),
        lambda: measure([Candidate(name="x", infer=failing)] * 2),
    ],
)
def test_contradictions_are_usage_errors(attempt: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        attempt()


def test_progress_is_reported_from_start_to_end(time: SimulatedTime) -> None:
    reported: list[MeasureProgress] = []
    measure([Candidate(name="a", infer=time.inference("a", 5.0))], MeasurePlan(min_duration_s=2.2), reported.append)
    assert reported[0] == MeasureProgress("warm-up of a", 0, None)
    assert reported[-1] == MeasureProgress("measuring", 1.0, 0.0)
    rounds = [progress for progress in reported if progress.stage == "measuring"]
    fractions = [progress.fraction for progress in rounds]
    remaining_s = [progress.remaining_s or 0.0 for progress in rounds]
    assert len(rounds) >= 3 and fractions == sorted(fractions)
    assert remaining_s == sorted(remaining_s, reverse=True) and 2 < remaining_s[0] < 4


def test_the_remaining_time_never_exceeds_the_limit(time: SimulatedTime) -> None:
    reported: list[MeasureProgress] = []
    plan = MeasurePlan(min_duration_s=100, max_duration_s=100, max_total_s=5)
    measure([Candidate(name="a", infer=time.inference("a", 5.0))], plan, reported.append)
    assert all(progress.remaining_s is None or progress.remaining_s <= 5 for progress in reported)


def test_the_device_is_sampled_while_engines_work_and_never_while_one_is_timed(tmp_path: Path) -> None:
    """Whenever a sensor is read, the next inference is an unrecorded one."""
    files = tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq"
    files.parent.mkdir(parents=True)
    files.write_text("918000000")
    plan = dataclasses.replace(QUICK, sample_interval_s=0.0, min_runs=8, min_duration_s=0.0, min_rounds=8)
    reports = measure([Candidate(name=name, infer=work(2)) for name in "ab"], plan, root=tmp_path)
    trace = reports[0].trace
    assert trace is not None and trace == reports[1].trace and trace.problem == ""
    assert len(trace.samples_of("a")) >= 4 and len(trace.samples_of("b")) >= 4
    timed = sorted(
        (start, start + 1e6 * sample)
        for report in reports
        for start, sample in zip(report.starts_ns, report.samples_ms, strict=True)
    )
    for start_ns, cost_ms in zip(trace.starts_ns, trace.costs_ms, strict=True):
        end_ns = start_ns + 1e6 * cost_ms
        assert not any(begin < end_ns and start_ns < end for begin, end in timed)


def test_a_jetson_that_throttles_only_while_it_works_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the measurement no limit is active."""
    board, working = write_root(tmp_path, ORIN), work(2)
    limit = board / "sys/class/thermal/cooling_device1/cur_state"

    def infer() -> object:
        limit.write_text("3\n")
        return working()

    monkeypatch.setattr(MachineState, "capture", lambda *_: samples.QUIET)
    plan = dataclasses.replace(QUICK, sample_interval_s=0.0, min_runs=8, min_duration_s=0.0, min_rounds=8)
    (report,) = measure([Candidate(name="a", infer=infer)], plan, root=board)
    assert report.throttled and "the machine throttled (devfreq-17000000.gpu cooling_device1 at 3)" in report.warnings
    assert report.power_w == {"VDD_GPU_SOC": 4.764} and report.environment.board is not None


def test_between_long_inferences_the_device_is_sampled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of inferences of half a second, one turn has one run, and the sampler reads at 2 Hz."""
    simulated = SimulatedTime()
    monkeypatch.setattr(clock, "now_ns", simulated)
    sampler = Sampler([Source((Channel("emc", "clock"),), lambda: [3199.0])], "a", now_ns=simulated)
    monkeypatch.setattr(measurement, "device_sampler", lambda *_, **__: sampler)

    def infer() -> object:
        while sampler.busy:  # the sampler's thread works in real time
            pass
        return simulated.inference("a", 500.0)()

    (report,) = measure([Candidate(name="a", infer=infer)], MeasurePlan(min_runs=20, turn_s=5.0))
    assert report.trace is not None and report.trace.rate_hz == pytest.approx(2, rel=0.05)
    assert report.rounds.count(0) > 1  # in one turn


def test_energy_is_counted_in_turns_and_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes 5 W when idle, and 0.25 J more for each inference of 10 ms."""
    simulated, done = SimulatedTime(), [0]
    monkeypatch.setattr(clock, "now_ns", simulated)
    monkeypatch.setattr("time.sleep", lambda s: setattr(simulated, "ns", simulated.ns + round(1e9 * s)))

    def energy_j() -> list[float]:
        return [5 * simulated.ns / 1e9 + 0.25 * done[0]]

    def infer() -> object:
        simulated.ns += 10_000_000
        done[0] += 1
        return OUTPUT

    counter = Source((Channel("package", "energy"),), energy_j)
    monkeypatch.setattr(measurement, "device_sampler", lambda names, **_: Sampler([], names, energy=[counter]))
    (report,) = measure([Candidate(name="a", infer=infer)], dataclasses.replace(QUICK, min_duration_s=1.0))
    estimate = report.energy_per_inference["package"]
    assert estimate.joules == pytest.approx(0.25, rel=0.001) and estimate.idle_w == pytest.approx(5, rel=0.001)
    assert estimate.interval is not None and estimate.interval.high - estimate.interval.low < 0.001
