"""Statistics compared with NumPy, with binomial probabilities and with known true values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.latency import statistics
from edgevit.latency.statistics import Ratio, Verdict
from edgevit.types import Interval


@pytest.mark.parametrize(
    ("percent", "by_hand"),
    [(50, 350.5), (90, 630.1), (99, 693.01)],  # of 1, 2, …, 700: 1 + 699 * percent / 100
)
def test_percentiles_equal_numpys_and_those_computed_by_hand(percent: float, by_hand: float) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 701.0))
    found = statistics.percentile(values, percent).value
    assert found == pytest.approx(by_hand)
    assert found == pytest.approx(np.percentile(values, percent))


@pytest.mark.parametrize(("percent", "runs"), [(50, 11), (90, 64), (99, 662)])  # 64 and 662 as in MLPerf's rules
def test_a_percentile_of_too_few_runs_is_withheld(percent: float, runs: int) -> None:
    enough, too_few = statistics.percentile(np.ones(runs), percent), statistics.percentile(np.ones(runs - 1), percent)
    assert enough.value == 1 and enough.reason == ""
    assert too_few.value is None and too_few.reason == f"p{percent} needs {runs} runs, not {runs - 1}"


@pytest.mark.parametrize("percent", [-1, 10, 100, 101])
def test_lower_percentiles_are_usage_errors(percent: float) -> None:
    with pytest.raises(UsageError, match="from 50 to below 100"):
        statistics.percentile([1.0], percent)


def test_the_standard_deviation_is_that_of_a_sample() -> None:
    assert statistics.standard_deviation([1, 2, 3, 4]) == pytest.approx(math.sqrt(5 / 3))
    assert statistics.coefficient_of_variation([1, 2, 3, 4]) == pytest.approx(math.sqrt(5 / 3) / 2.5)
    assert statistics.standard_deviation([7]) == 0


@pytest.mark.parametrize(
    ("count", "expected"),
    # Binomial table: 1 - 2 / 2**8 = 99.2 %; 1 - 2 * (1 + 15 + 105) / 2**15 = 99.3 %, one rank further in 96.5 %.
    [(7, None), (8, Interval(1, 8)), (15, Interval(3, 13))],
)
def test_the_interval_of_a_median_is_exact(count: int, expected: Interval | None) -> None:
    assert statistics.median_interval(np.arange(count, 0.0, -1)) == expected


@pytest.mark.parametrize("count", [8, 33, 200, 5000])
def test_the_interval_of_a_median_contains_the_true_value(count: int) -> None:
    random = np.random.default_rng(count)
    samples = [np.exp(random.standard_normal(count)) for _ in range(300)]  # a true median of 1, and a long tail
    intervals = [statistics.median_interval(each) for each in samples]
    assert sum(interval is not None and 1.0 in interval for interval in intervals) >= 292  # 297 expected


def shared_drift(rounds: int, seed: int) -> NDArray[np.float64]:
    """Return the slowness of a machine that halves its speed midway and drifts, (rounds,)."""
    random = np.random.default_rng(seed)
    halves = np.where(np.arange(rounds) < rounds // 2, 1.0, 2.0)
    return halves * np.exp(0.02 * np.cumsum(random.standard_normal(rounds)))


def test_shared_drift_cancels_in_the_paired_ratio_but_not_in_the_unpaired() -> None:
    machine, random = shared_drift(61, seed=3), np.random.default_rng(4)
    first = 5.0 * machine * np.exp(0.01 * random.standard_normal(61))
    second = 5.5 * machine * np.exp(0.01 * random.standard_normal(61))
    paired, unpaired = statistics.paired_ratio(second, first), statistics.unpaired_ratio(second, first)
    assert paired.value == pytest.approx(1.1, rel=0.01) and paired.verdict == "slower"
    assert unpaired.verdict == "cannot tell"
    # Measured one after the other, the faster one would look much slower.
    one_after_the_other = np.median(first[31:]) / np.median(second[:31])
    assert one_after_the_other > 1.5


def test_equal_candidates_rarely_get_a_verdict() -> None:
    wrong = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        noise = random.standard_normal((2, 60))
        for step in range(1, 60):  # a disturbance of one round continues in the next
            noise[:, step] += 0.5 * noise[:, step - 1]
        ratio = statistics.paired_ratio(*np.exp(0.05 * noise))
        wrong += ratio.verdict != "cannot tell"
    assert wrong <= 10  # 2 expected of independent rounds


@pytest.mark.parametrize("ratio", [statistics.paired_ratio, statistics.unpaired_ratio])
@pytest.mark.parametrize("rounds", [8, 12])
def test_the_interval_of_a_ratio_contains_the_true_value_with_the_fewest_rounds(
    ratio: Callable[..., Ratio], rounds: int
) -> None:
    """The bootstrap alone misses it in 16 of 100 measurements of eight rounds, at a confidence of 99 %."""
    random = np.random.default_rng(rounds)
    times = [np.exp(0.05 * random.standard_normal((2, rounds))) for _ in range(200)]
    intervals = [ratio(first, second).interval for first, second in times]
    assert sum(interval is not None and 1.0 in interval for interval in intervals) >= 193  # 198 expected


@pytest.mark.parametrize("interval", [statistics.fast_paired_interval, statistics.fast_unpaired_interval])
def test_the_interval_of_fast_rounds_ignores_disturbed_ones(interval: Callable[..., Interval]) -> None:
    random = np.random.default_rng(0)
    first, second = np.exp(0.01 * random.standard_normal((2, 60))) * [[1.0], [1.5]]
    second[random.random(60) < 0.6] *= 10
    found = interval(second, first)
    assert 1.5 in found and found.high / found.low < 1.2
    assert statistics.paired_ratio(second, first).value > 10


def test_a_union_contains_both_intervals() -> None:
    assert statistics.union(Interval(1, 3), Interval(2, 4)) == Interval(1, 4)
    assert statistics.union(Interval(5, 6), Interval(1, 2)) == Interval(1, 6)


def test_swapping_the_candidates_inverts_the_ratio() -> None:
    first, second = np.exp(np.random.default_rng(0).standard_normal((2, 40)))
    ratio, inverse = statistics.paired_ratio(first, second), statistics.paired_ratio(second, first)
    assert ratio.interval is not None and inverse.interval is not None
    assert ratio.value == pytest.approx(1 / inverse.value)
    assert ratio.interval.low == pytest.approx(1 / inverse.interval.high)


def test_equal_samples_give_equal_ratios() -> None:
    first, second = np.exp(np.random.default_rng(0).standard_normal((2, 40)))
    assert statistics.paired_ratio(first, second) == statistics.paired_ratio(first, second)
    assert statistics.unpaired_ratio(first, second) == statistics.unpaired_ratio(first, second)


def test_many_rounds_are_resampled_in_parts() -> None:
    interval = statistics.paired_ratio(np.full(3000, 2.0), np.ones(3000)).interval
    assert interval is not None and (interval.low, interval.high) == pytest.approx((2, 2))


@pytest.mark.parametrize(
    ("interval", "reason", "verdict"),
    [
        (Interval(0.7, 0.9), "", "faster"),
        (Interval(1.1, 1.3), "", "slower"),
        (Interval(0.9, 1.1), "", "cannot tell"),
        (Interval(1.0, 1.2), "", "cannot tell"),
        (Interval(0.7, 0.9), "the machine was busy", "cannot tell"),
        (None, "", "cannot tell"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_1(interval: Interval | None, reason: str, verdict: Verdict) -> None:
    assert Ratio(1.0, interval, 20, reason).verdict == verdict


@pytest.mark.parametrize("rounds", [1, 7])
def test_too_few_rounds_give_no_verdict_however_clear(rounds: int) -> None:
    for ratio in (statistics.paired_ratio, statistics.unpaired_ratio):
        found = ratio(np.full(rounds, 2.0), np.ones(rounds))
        assert found.value == pytest.approx(2) and found.verdict == "cannot tell"
        assert found.reason == f"an interval needs 8 rounds, not {rounds}"


def test_unequal_numbers_of_rounds_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="the same number"):
        statistics.paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("medians", "steady"),
    [
        ([], False),
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),
        ([9.0, 1.0, 1.04, 1.0], True),  # only the last three count
        ([1.0, 1.0, 1.2], False),
        ([3.0, 2.0, 1.0], False),
    ],
)
def test_a_warm_up_is_steady_when_three_windows_agree(medians: list[float], steady: bool) -> None:
    assert statistics.is_steady(medians, 0.05) == steady
