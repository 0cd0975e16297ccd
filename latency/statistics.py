"""Percentiles, bootstrap intervals and paired ratios. All random draws are seeded: equal samples give equal results.

Percentiles are interpolated linearly between order statistics (Hyndman and Fan 1996, type 7; NumPy's default). No
sample is removed as an outlier: users experience slow inferences too.

Consecutive inferences are not independent, since the load of other processes outlasts a single one. So intervals are
computed over rounds instead of runs, and the bootstrap draws blocks of consecutive rounds (Politis and Romano 1992).
With few rounds the bootstrap interval is too narrow: with eight independent rounds it contains the true value in 84 of
100 cases instead of 99. So the interval of a ratio is the union of the bootstrap's and that of the order statistics,
which is exact for independent rounds.

A measurement goes on if its first interval cannot tell (`MeasurePlan.extension`). Looking twice doubles the chance of
a wrong verdict, so both looks share the error (Bonferroni): each interval has 99.5 % confidence, and both contain the
true value with at least 99 %, by whatever rule the measurement ended. The Hodges-Lehmann estimate with the interval
of the signed-rank test was tried instead of the median, on simulated rounds. With 16 to 20 of them it finds a planted
10 % no more often if a tenth was interrupted, which makes the tails heavy, and its coverage suffers more if rounds hang
together (autocorrelation 0.5, 20 rounds: 90 % instead of 97 %). With 48 rounds the median finds 400 of 400.

Other processes bias a ratio: a run that fits into the scheduler's time slice escapes them, a longer one does not. Under
load the medians of a candidate with twice the work can be 20 times as long, and its fast runs twice as long. So the
interval of a measurement under load is the union of that of the medians and that of the fast runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.types import Interval

Verdict: TypeAlias = Literal["faster", "slower", "cannot tell"]
Values: TypeAlias = Sequence[float] | NDArray[np.float64]

CONFIDENCE = 0.99
RESAMPLES = 2000
_PERCENTILE_RESAMPLES = 500
FAST_PERCENT = 10  # the percentile of runs that other processes hardly disturb
MIN_ROUNDS = 8  # for an interval with 99 % confidence, see `rounds_needed`


def bounds(interval: Interval | None) -> list[float] | None:
    """Return an interval as JSON stores it: [low, high], or None."""
    return None if interval is None else [interval.low, interval.high]


@dataclass(frozen=True, slots=True)
class Percentile:
    """One percentile. `value` is None if there are too few samples for it; `reason` then says so."""

    percent: float
    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A candidate's time divided by the reference's: 0.5 is twice as fast, 2 half as fast.

    `interval` is None if there are too few rounds. `reason` says why there is no verdict although there is an interval.
    """

    value: float
    interval: Interval | None
    rounds: int
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """ "faster" or "slower" if the whole interval is on that side of 1, else "cannot tell"."""
        if self.reason or self.interval is None or 1.0 in self.interval:
            return "cannot tell"
        return "faster" if self.interval.high < 1 else "slower"


def runs_needed(percent: float) -> int:
    """Return how many samples a percentile needs: 11 for p50, 64 for p90, 662 for p99, 6636 for p99.9.

    This is the early-stopping rule of MLPerf Inference (inference_rules.adoc, appendix): with 99 % confidence at least
    two samples exceed the true percentile, so that the estimate does not depend on the slowest one alone.
    Raises UsageError unless 50 <= percent < 100.
    """
    if not 50 <= percent < 100:
        raise UsageError(f"percentile {percent:g} is not supported; use one from 50 to below 100")
    above = 1 - percent / 100
    runs = 2
    while (1 - above) ** runs + runs * above * (1 - above) ** (runs - 1) > 1 - CONFIDENCE:
        runs += 1
    return runs


def percentile(values: Values, percent: float) -> Percentile:
    """Return the percentile of `values`, or why there is none (see `runs_needed`)."""
    needed = runs_needed(percent)
    if len(values) < needed:
        return Percentile(percent, None, f"p{percent:g} needs {needed} runs, not {len(values)}")
    return Percentile(percent, float(np.percentile(values, percent)))


def by_round(values: Values, rounds: Sequence[int]) -> list[NDArray[np.float64]]:
    """Return one value of each sample as one array for each round, whose numbers `rounds` has."""
    return np.split(np.array(values, float), np.flatnonzero(np.diff(rounds)) + 1)


def percentile_interval(rounds: Sequence[Values], percent: float) -> Interval | None:
    """Return the interval of a percentile of all samples; None if there are too few samples or rounds.

    It is a bootstrap interval over rounds, because the samples of one round are not independent.
    """
    if len(rounds) < MIN_ROUNDS or sum(map(len, rounds)) < runs_needed(percent):
        return None
    values = np.concatenate([np.asarray(turn, float) for turn in rounds])
    round_of = np.repeat(np.arange(len(rounds)), [len(turn) for turn in rounds])
    order = np.argsort(values)
    drawn = np.random.default_rng(0).integers(len(rounds), size=(_PERCENTILE_RESAMPLES, len(rounds)))
    found = []
    for resample in drawn:  # a value counts as often as its round was drawn
        reached = np.cumsum(np.bincount(resample, minlength=len(rounds))[round_of[order]])
        found.append(values[order[np.searchsorted(reached, percent / 100 * reached[-1])]])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(float(low), float(high))


def standard_deviation(values: Values) -> float:
    """Return the sample standard deviation (n - 1); 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def coefficient_of_variation(values: Values) -> float:
    """Return the standard deviation divided by the mean."""
    return standard_deviation(values) / float(np.mean(values))


def rounds_needed(confidence: float) -> int:
    """Return how many rounds an interval needs: with fewer, the smallest and largest enclose the median less often."""
    return math.ceil(1 + math.log2(1 / (1 - confidence)))


def median_interval(values: Values, confidence: float = CONFIDENCE) -> Interval | None:
    """Return the interval of the median from order statistics: exact for independent values of any distribution.

    It is None with fewer than `rounds_needed` values.
    """
    ordered, count = np.sort(values), len(values)
    rank = count // 2
    if rank == 0:
        return None
    # The pair (rank, count + 1 - rank) encloses the median if `rank` to `count - rank` values are below it, which has
    # a binomial probability. Widen the pair from the middle until that probability is at least `confidence`.
    log_probability = (
        math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1) - count * math.log(2)
    )
    probability = math.exp(log_probability)
    coverage = probability if count % 2 == 0 else 2 * probability
    while coverage < confidence:
        probability *= rank / (count - rank + 1)
        coverage += 2 * probability
        rank -= 1
        if rank == 0:
            return None
    return Interval(float(ordered[rank - 1]), float(ordered[count - rank]))


def paired_ratio(times: Values, reference: Values, *, confidence: float = CONFIDENCE) -> Ratio:
    """Return the ratio of two candidates that took turns: the median over rounds of the ratio within a round.

    Within a round both run on the same machine state, so whatever slows both cancels. `times` and `reference` have
    one value per round, (rounds,). Raises UsageError if their lengths differ.
    """
    if len(times) != len(reference) or not len(times):
        raise UsageError(
            f"paired ratio of {len(times)} and {len(reference)} rounds; both need the same number, at least 1"
        )
    logs = np.log(np.asarray(times, float)) - np.log(np.asarray(reference, float))
    resampled, exact = _resampled_medians(logs, seed=0), median_interval(logs, confidence)
    return _ratio(float(np.median(logs)), resampled, exact, rounds=len(logs), confidence=confidence)


def unpaired_ratio(times: Values, reference: Values) -> Ratio:
    """Return the ratio of the medians of two separate measurements, whose lengths may differ.

    The interval of the difference of two medians follows from the interval of each: the distances of their bounds from
    the medians are added in quadrature (Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702).
    """
    if not len(times) or not len(reference):
        raise UsageError("a ratio needs at least one round of each measurement")
    above, below = np.log(np.asarray(times, float)), np.log(np.asarray(reference, float))
    resampled = _resampled_medians(above, seed=0) - _resampled_medians(below, seed=1)
    value = float(np.median(above) - np.median(below))
    exact = _interval_of_difference(above, below)
    return _ratio(value, resampled, exact, rounds=min(len(above), len(below)), confidence=CONFIDENCE)


def fast_paired_interval(times: Values, reference: Values) -> Interval:
    """Return the interval of the ratio of the fastest rounds of two candidates that took turns.

    `times` and `reference` have a fast value of each round, (rounds,). The ratio is that of their 10th percentiles; the
    interval is a bootstrap interval over rounds.
    """
    return _interval_of_percentiles(times, reference, seeds=(0, 0))


def fast_unpaired_interval(times: Values, reference: Values) -> Interval:
    """Return the interval of the ratio of the fastest rounds of two separate measurements."""
    return _interval_of_percentiles(times, reference, seeds=(0, 1))


def union(first: Interval, second: Interval) -> Interval:
    """Return the smallest interval that contains both."""
    return Interval(min(first.low, second.low), max(first.high, second.high))


def is_steady(window_medians: Values, tolerance: float) -> bool:
    """Return whether the last three windows of a warm-up agree: medians within `tolerance` of the middle one."""
    low, middle, high = sorted(window_medians[-3:]) if len(window_medians) >= 3 else (0.0, 1.0, math.inf)
    return high - low <= tolerance * middle


def _interval_of_difference(above: NDArray[np.float64], below: NDArray[np.float64]) -> Interval | None:
    first, second = median_interval(above), median_interval(below)
    if first is None or second is None:
        return None
    middle, other = float(np.median(above)), float(np.median(below))
    return Interval(
        middle - other - math.hypot(middle - first.low, second.high - other),
        middle - other + math.hypot(first.high - middle, other - second.low),
    )


def _ratio(
    log_value: float, log_resampled: NDArray[np.float64], log_exact: Interval | None, *, rounds: int, confidence: float
) -> Ratio:
    """Return the ratio from logarithms, so that swapping the candidates gives the inverse."""
    value = math.exp(log_value)
    if log_exact is None:
        return Ratio(value, None, rounds, f"an interval needs {rounds_needed(confidence)} rounds, not {rounds}")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(log_resampled, [tail, 100 - tail])
    return Ratio(value, Interval(math.exp(min(low, log_exact.low)), math.exp(max(high, log_exact.high))), rounds)


def _interval_of_percentiles(times: Values, reference: Values, *, seeds: tuple[int, int]) -> Interval:
    """Return the bootstrap interval of a ratio of 10th percentiles. Equal seeds resample both in pairs."""
    above, below = (np.log(np.asarray(values, float)) for values in (times, reference))
    logs = _resampled_percentiles(above, seeds[0], FAST_PERCENT) - _resampled_percentiles(below, seeds[1], FAST_PERCENT)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(logs, [tail, 100 - tail])
    return Interval(math.exp(low), math.exp(high))


def _resampled_medians(values: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    return _resampled_percentiles(values, seed, 50)


def _resampled_percentiles(values: NDArray[np.float64], seed: int, percent: float) -> NDArray[np.float64]:
    """Return a percentile of resamples in blocks of n**(1/3) consecutive values; the first value follows the last."""
    random, count = np.random.default_rng(seed), len(values)
    length = math.ceil(count ** (1 / 3))
    at_once = max(1, 1_000_000 // count)  # limits memory if there are many rounds
    found = []
    for done in range(0, RESAMPLES, at_once):
        shape = (min(at_once, RESAMPLES - done), math.ceil(count / length), 1)
        index = (random.integers(count, size=shape) + np.arange(length)) % count  # (resamples, blocks, length)
        found.append(np.percentile(values[index.reshape(shape[0], -1)[:, :count]], percent, axis=1))
    return np.concatenate(found)
