"""Ratios, verdicts and the gate, on reports with known true ratios."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevit.errors import MeasureError, RegressionError, UsageError
from edgevit.latency import compare
from edgevit.latency.environment import Environment, MachineState
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, Verdict
from tests.helpers import samples
from tests.helpers.samples import noisy, report

OLD = report(noisy(10, seed=1), run_id="the baseline's run")


def paired(first: LatencyReport, second: LatencyReport) -> Ratio:
    ratio = compare.side_by_side((first, second))[1].ratio
    assert ratio is not None and ratio.interval is not None
    return ratio


@pytest.mark.parametrize(
    ("times", "verdict"), [(0.8, "faster"), (0.95, "faster"), (1.0, "cannot tell"), (1.05, "slower"), (2.0, "slower")]
)
def test_side_by_side_finds_the_faster_one(times: float, verdict: Verdict) -> None:
    ratio = paired(report(noisy(10, seed=1)), report(noisy(10 * times, seed=2), name="b"))
    assert ratio.interval is not None and times in ratio.interval
    assert ratio.verdict == verdict


def test_the_difference_between_two_loads_of_an_engine_gives_no_verdict() -> None:
    ratio = paired(report([[10.0] * 5] * 40), report([[9.95] * 5] * 40, name="b"))
    assert ratio.verdict == "cannot tell"


def test_the_first_row_is_the_reference() -> None:
    rows = compare.side_by_side((report([[1.0]] * 9), report([[2.0]] * 9, name="b"), report([[4.0]] * 9, name="c")))
    assert rows[0].ratio is None
    assert [round(row.ratio.value, 6) for row in rows if row.ratio] == [2, 4]


def test_ratios_are_per_image() -> None:
    ratio = paired(report([[2.0]] * 9, batch=1), report([[8.0]] * 9, name="b", batch=8))
    assert ratio.value == pytest.approx(0.5)


def test_reports_of_different_runs_do_not_compare_side_by_side() -> None:
    with pytest.raises(MeasureError, match="cannot tell: a and a were not measured side by side"):
        compare.side_by_side((report([[1.0]] * 9), OLD))
    with pytest.raises(UsageError):
        compare.side_by_side(())


@pytest.mark.parametrize(
    ("times", "verdict"), [(0.5, "faster"), (0.9, "faster"), (1.0, "cannot tell"), (1.1, "slower"), (2.0, "slower")]
)
def test_a_busy_machine_gives_a_verdict_if_it_is_clear(times: float, verdict: Verdict) -> None:
    first = report(noisy(10, seed=1), after=samples.BUSY_AFTER)
    ratio = paired(first, report(noisy(10 * times, seed=2), name="b", after=samples.BUSY_AFTER))
    assert ratio.value == pytest.approx(times, rel=0.05) and ratio.verdict == verdict


def preempted(median_ms: float, *, seed: int, fraction: float) -> NDArray[np.float64]:
    """Return turns of which a fraction of the runs waits 3 ms for other processes, (rounds, runs)."""
    waits = np.random.default_rng(seed).random((40, 5)) < fraction
    return noisy(median_ms, seed=seed) + 3.0 * waits


def test_on_a_busy_machine_the_interval_contains_the_ratio_of_the_fast_runs() -> None:
    """A run of 2 ms is mostly undisturbed, one of 2.2 ms waits mostly: the medians alone make it 2.4 times as long."""
    turns = preempted(2.0, seed=1, fraction=0.3), preempted(2.2, seed=2, fraction=0.7)
    idle = paired(report(turns[0]), report(turns[1], name="b"))
    busy = paired(report(turns[0], after=samples.BUSY_AFTER), report(turns[1], name="b", after=samples.BUSY_AFTER))
    assert idle.interval is not None and busy.interval is not None
    assert 1.1 not in idle.interval and 1.1 in busy.interval
    assert idle.interval.high == pytest.approx(busy.interval.high)
    assert busy.verdict == "slower"


def test_runs_that_are_equal_but_for_other_processes_get_no_verdict() -> None:
    turns = preempted(2.0, seed=1, fraction=0.3), preempted(2.0, seed=2, fraction=0.7)
    assert paired(report(turns[0]), report(turns[1], name="b")).verdict == "slower"
    ratio = paired(report(turns[0], after=samples.BUSY_AFTER), report(turns[1], name="b", after=samples.BUSY_AFTER))
    assert ratio.verdict == "cannot tell"


@pytest.mark.parametrize(("times", "verdict"), [(0.8, "faster"), (1.0, "cannot tell"), (1.2, "slower")])
def test_a_baseline_of_the_same_machine_compares(times: float, verdict: Verdict) -> None:
    ratio = compare.against_baseline(report(noisy(10 * times, seed=2)), OLD)
    assert ratio.interval is not None and times in ratio.interval and ratio.verdict == verdict


def change(**changes: object) -> Environment:
    return dataclasses.replace(samples.BOARD, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "difference"),
    [
        (change(architecture="x86_64"), "architecture: x86_64 here, aarch64 there"),
        (change(board="Another board"), "board"),
        (change(cpu="Another processor"), "cpu"),
        (change(isa=("asimd",)), "isa"),
        (change(physical_cores=2), "physical_cores"),
        (change(logical_cores=8), "logical_cores"),
        (change(affinity=(0, 1)), "affinity"),
        (change(cpu_limit=1.5), "cpu_limit"),
        (change(governor="powersave"), "governor"),
        (change(min_mhz=100.0), "min_mhz"),
        (change(max_mhz=2000.0), "max_mhz"),
        (change(boost=True), "boost"),
        (change(power_mode="15W (1)"), "power_mode"),
        (change(gpus=("A GPU, driver 1",)), "gpus"),
        (change(device_clocks={}), "device_clocks"),
        (change(jetson="R36"), "jetson"),
        (change(packages={"numpy": "1.26.4", "onnxruntime": "1.21.0"}), "onnxruntime: 1.21.0 here, 1.20.0 there"),
        (change(packages={"numpy": "1.26.4"}), "onnxruntime: None here"),
    ],
)
def test_a_baseline_of_another_machine_does_not_compare(environment: Environment, difference: str) -> None:
    here = report(noisy(10, seed=1), environment=environment)
    with pytest.raises(MeasureError, match=f"cannot compare with the baseline: {difference}") as caught:
        compare.against_baseline(here, OLD)
    assert caught.value.exit_status == 7
    with pytest.raises(MeasureError):
        compare.gate(report(noisy(100, seed=1), environment=environment), OLD, max_slowdown=0.1)


@pytest.mark.parametrize(
    "environment",
    [
        change(state=dataclasses.replace(samples.QUIET, load_average=(9.0, 9.0, 9.0))),
        change(packages={"numpy": "2.0", "onnxruntime": "1.20.0"}),
        change(memory_total_mb=100.0, kernel="6.1", container="docker"),
    ],
)
def test_differences_that_do_not_affect_latency_are_ignored(environment: Environment) -> None:
    assert compare.against_baseline(report(noisy(10, seed=2), environment=environment), OLD).interval is not None


@pytest.mark.parametrize(("batch", "threads", "difference"), [(2, 1, "batch: 2 here, 1 there"), (1, 4, "threads: 4")])
def test_a_baseline_of_other_inputs_does_not_compare(batch: int, threads: int, difference: str) -> None:
    with pytest.raises(MeasureError, match=f"cannot compare with the baseline: {difference}"):
        compare.against_baseline(report(noisy(10, seed=1), batch=batch, threads=threads), OLD)


@pytest.mark.parametrize(
    ("times", "allowed", "status"),
    [
        (1.0, 0.1, 0),
        (1.0, 0.0, 7),  # equal, but the interval contains 1
        (1.09, 0.1, 7),
        (1.1, 0.1, 7),
        (1.2, 0.1, 8),
        (1.2, 0.3, 0),
        (0.5, 0.0, 0),
        (2.0, 0.5, 8),
    ],
)
def test_the_gate_passes_and_fails_only_if_the_whole_interval_does(times: float, allowed: float, status: int) -> None:
    here = report(noisy(10 * times, seed=2))
    if status == 0:
        assert compare.gate(here, OLD, max_slowdown=allowed).value == pytest.approx(times, rel=0.05)
        return
    messages = {
        7: "cannot tell whether a is slower than its baseline allows",
        8: r"takes [12]\.\d+ times as long as its",
    }
    with pytest.raises((MeasureError, RegressionError), match=messages[status]) as caught:
        compare.gate(here, OLD, max_slowdown=allowed)
    assert caught.value.exit_status == status


def test_a_slowdown_within_the_noise_gives_no_verdict() -> None:
    here, old = (report(noisy(ms, seed=seed, rounds=10, runs=1, noise=0.6)) for ms, seed in ((13, 5), (10, 6)))
    with pytest.raises(MeasureError, match="cannot tell whether a is slower"):
        compare.gate(here, old, max_slowdown=0.1)


def test_too_few_rounds_give_no_verdict() -> None:
    with pytest.raises(MeasureError, match="an interval needs 8 rounds, not 3"):
        compare.gate(report([[20.0]] * 3), report([[10.0]] * 3), max_slowdown=0.1)


def test_a_slower_machine_is_not_a_slowdown_of_the_engine() -> None:
    here = report(noisy(14, seed=2), probe_ms=0.7)  # 1.4 times as slow as the baseline, like the probe
    ratio = compare.against_baseline(here, OLD)
    assert ratio.verdict == "cannot tell" and ratio.value == pytest.approx(1.4, rel=0.05)
    with pytest.raises(MeasureError, match="cannot tell whether a is slower"):
        compare.gate(here, OLD, max_slowdown=0.1)
    with pytest.raises(RegressionError):
        compare.gate(report(noisy(28, seed=2), probe_ms=0.7), OLD, max_slowdown=0.1)  # slower than the machine explains


HOT = dataclasses.replace(samples.AFTER, throttle_events={"oc1_event_cnt": 4})


@pytest.mark.parametrize(
    ("after", "before", "reason"),
    [
        (HOT, samples.AFTER, "the machine throttled in this run only"),
        (samples.AFTER, HOT, "the machine throttled in the baseline run only"),
    ],
)
def test_throttling_in_one_run_gives_no_verdict(after: MachineState, before: MachineState, reason: str) -> None:
    here, old = report(noisy(20, seed=2), after=after), report(noisy(10, seed=1), after=before)
    assert compare.against_baseline(here, old).verdict == "cannot tell"
    with pytest.raises(MeasureError, match=reason):
        compare.gate(here, old, max_slowdown=0)


@pytest.mark.parametrize(
    ("times", "after", "before", "status"),
    [
        (2.0, samples.BUSY_AFTER, samples.AFTER, 8),
        (1.5, samples.BUSY_AFTER, samples.AFTER, 7),  # equal shares of the cores explain a factor of 1.59
        (1.0, samples.BUSY_AFTER, samples.AFTER, 0),  # as fast although the machine was busy
        (0.9, samples.BUSY_AFTER, samples.AFTER, 0),  # faster although the machine was busy
        (2.0, samples.AFTER, samples.BUSY_AFTER, 8),
        (0.9, samples.AFTER, samples.BUSY_AFTER, 7),  # perhaps only because the baseline's run was disturbed
        (0.5, samples.AFTER, samples.BUSY_AFTER, 0),
    ],
)
def test_a_busy_machine_widens_the_interval_against_a_baseline(
    times: float, after: MachineState, before: MachineState, status: int
) -> None:
    here, old = report(noisy(10 * times, seed=2), after=after), report(noisy(10, seed=1), after=before)
    if status == 0:
        assert compare.gate(here, old, max_slowdown=0.05).value == pytest.approx(times, rel=0.05)
        return
    message = "other processes took 37 %" if status == 7 else "times as long as its baseline"
    with pytest.raises((MeasureError, RegressionError), match=message) as caught:
        compare.gate(here, old, max_slowdown=0.05)
    assert caught.value.exit_status == status


def test_a_negative_allowance_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="max_slowdown"):
        compare.gate(OLD, OLD, max_slowdown=-0.1)
