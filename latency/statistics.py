"""What samples of latency say, and how sure they are of it. Everything is seeded: equal samples, equal answers.

Percentiles are interpolated linearly between order statistics (Hyndman and Fan 1996, type 7; NumPy's default). No
sample is ever removed: a slow inference is what the user will meet.

Consecutive inferences are not independent (a neighbour's load lasts longer than one of them), so intervals are taken
over rounds, not over single runs, and the bootstrap draws blocks of consecutive rounds (Politis and Romano 1992). Of
few rounds it is too sure: of eight independent ones its interval holds the truth 84 times in 100, not 99. So the
interval of a ratio is what the bootstrap and the order statistics, exact for independent rounds, span together.
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
FEWEST_ROUNDS = 8  # with fewer, no two order statistics enclose the median with 99 % confidence: 1 - 2 / 2**8


def bounds(interval: Interval | None) -> list[float] | None:
    """An interval as JSON has it."""
    return None if interval is None else [interval.low, interval.high]


@dataclass(frozen=True, slots=True)
class Percentile:
    """One percentile; `value` is None where the samples are too few to know it, and `reason` says so."""

    percent: float
    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A candidate's time over the reference's: 0.5 is twice as fast, 2 twice as slow.

    `interval` is None where there are too few rounds for one. `reason` says why there can be no verdict even where
    the interval would give one.
    """

    value: float
    interval: Interval | None
    rounds: int
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """ "faster" or "slower" where the whole interval lies on one side of 1, else "cannot tell"."""
        if self.reason or self.interval is None or 1.0 in self.interval:
            return "cannot tell"
        return "faster" if self.interval.high < 1 else "slower"


def runs_needed(percent: float) -> int:
    """The fewest samples that a percentile may be told from: 11 for p50, 64 for p90, 662 for p99, 6636 for p99.9.

    MLPerf Inference's early-stopping rule (inference_rules.adoc, appendix): with 99 % confidence at least two samples
    lie above the true percentile, so that the estimate does not hang on the slowest one.
    """
    if not 50 <= percent < 100:
        raise UsageError(f"percentiles from 50 to below 100 are given, not {percent}")
    above = 1 - percent / 100
    runs = 2
    while (1 - above) ** runs + runs * above * (1 - above) ** (runs - 1) > 1 - CONFIDENCE:
        runs += 1
    return runs


def percentile(values: Values, percent: float) -> Percentile:
    """The percentile of `values`, or the reason why there is none (`runs_needed`)."""
    needed = runs_needed(percent)
    if len(values) < needed:
        return Percentile(percent, None, f"n too small: p{percent:g} needs {needed} runs, not {len(values)}")
    return Percentile(percent, float(np.percentile(values, percent)))


def standard_deviation(values: Values) -> float:
    """The sample standard deviation (n - 1); 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def coefficient_of_variation(values: Values) -> float:
    """Standard deviation over mean."""
    return standard_deviation(values) / float(np.mean(values))


def median_interval(values: Values) -> Interval | None:
    """The interval of the median from order statistics: exact for any distribution, if the values are independent.

    None where there are fewer than eight values.
    """
    ordered, count = np.sort(values), len(values)
    rank = count // 2
    if rank == 0:
        return None
    # The pair (rank, count + 1 - rank) encloses the median where between `rank` and `count - rank` of the values lie
    # below it, a binomial chance. The pair is widened from the middle until that chance is enough.
    log_chance = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1) - count * math.log(2)
    chance = math.exp(log_chance)
    covered = chance if count % 2 == 0 else 2 * chance
    while covered < CONFIDENCE:
        chance *= rank / (count - rank + 1)
        covered += 2 * chance
        rank -= 1
        if rank == 0:
            return None
    return Interval(float(ordered[rank - 1]), float(ordered[count - rank]))


def paired_ratio(times: Values, reference: Values, *, seed: int = 0) -> Ratio:
    """The ratio of two candidates that took turns: the median over rounds of the ratio within a round.

    Both meet the same machine within a round, so what slows both cancels. Raises UsageError where the rounds do not
    pair up.
    """
    if len(times) != len(reference) or not len(times):
        raise UsageError(f"rounds pair up one to one, not {len(times)} with {len(reference)}")
    logs = np.log(np.asarray(times, float)) - np.log(np.asarray(reference, float))
    return _ratio(float(np.median(logs)), _resampled_medians(logs, seed), median_interval(logs), len(logs))


def unpaired_ratio(times: Values, reference: Values, *, seed: int = 0) -> Ratio:
    """The ratio of the medians of two separate measurements.

    The intervals of the two medians make that of their difference by their distances from them, squared and added
    (Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702).
    """
    if not len(times) or not len(reference):
        raise UsageError("a ratio needs rounds on both sides")
    above, below = np.log(np.asarray(times, float)), np.log(np.asarray(reference, float))
    resampled = _resampled_medians(above, seed) - _resampled_medians(below, seed + 1)
    value = float(np.median(above) - np.median(below))
    return _ratio(value, resampled, _of_difference(above, below), min(len(above), len(below)))


def is_steady(window_medians: Values, tolerance: float) -> bool:
    """Whether the last three windows of a warm-up agree: their medians lie within `tolerance` of the middle one."""
    low, middle, high = sorted(window_medians[-3:]) if len(window_medians) >= 3 else (0.0, 1.0, math.inf)
    return high - low <= tolerance * middle


def _of_difference(above: NDArray[np.float64], below: NDArray[np.float64]) -> Interval | None:
    first, second = median_interval(above), median_interval(below)
    if first is None or second is None:
        return None
    middle, other = float(np.median(above)), float(np.median(below))
    return Interval(
        middle - other - math.hypot(middle - first.low, second.high - other),
        middle - other + math.hypot(first.high - middle, other - second.low),
    )


def _ratio(log_value: float, log_resampled: NDArray[np.float64], log_exact: Interval | None, rounds: int) -> Ratio:
    """Taken in logarithms, so that swapping the candidates gives the inverse."""
    value = math.exp(log_value)
    if log_exact is None:
        return Ratio(value, None, rounds, f"an interval needs {FEWEST_ROUNDS} rounds, not {rounds}")
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(log_resampled, [tail, 100 - tail])
    return Ratio(value, Interval(math.exp(min(low, log_exact.low)), math.exp(max(high, log_exact.high))), rounds)


def _resampled_medians(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Medians of resamples drawn in blocks of n**(1/3) consecutive values, the last followed by the first."""
    random, count = np.random.default_rng(seed), len(values)
    length = math.ceil(count ** (1 / 3))
    at_once = max(1, 1_000_000 // count)  # bounds the memory that many rounds take
    medians = []
    for done in range(0, RESAMPLES, at_once):
        shape = (min(at_once, RESAMPLES - done), math.ceil(count / length), 1)
        index = (random.integers(count, size=shape) + np.arange(length)) % count  # (resamples, blocks, length)
        medians.append(np.median(values[index.reshape(shape[0], -1)[:, :count]], axis=1))
    return np.concatenate(medians)
