"""Differences of arrays in which infinity and NaN at the same places are equal: a model may output them itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgevit.types import Array


def differences(values: Array, expected: Array) -> NDArray[np.float64]:
    """Return the absolute differences in float64; infinity if only one of the two is finite, or their signs differ."""
    equal = (values == expected) | (np.isnan(values) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(values.astype(np.float64) - expected)
    found: NDArray[np.float64] = np.where(equal, 0.0, np.where(np.isnan(difference), np.inf, difference))
    return found


def largest_difference(values: Array, expected: Array) -> float:
    """Return the largest of the finite differences; 0 if there are none."""
    found = differences(values, expected)
    return float(found[np.isfinite(found)].max(initial=0.0))


def finite_std(values: Array) -> float:
    """Return the standard deviation of the finite values, in float64; 0 if there are none.

    Values that are all equal have their magnitude instead: errors are divided by it, and a rounding is no infinite one.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0
    return float(finite.std()) if finite.min() < finite.max() else float(abs(finite[0]))


def relative(error: float, size: float) -> float:
    """Return an error over the size of the values: 0 if both are 0, and infinity if only the size is."""
    return error / size if size > 0 else 0.0 if error == 0 else math.inf


def noise_to_signal(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the power of the differences over the power of the finite values of `expected`, over all pairs.

    It is infinity if a value is finite in only one of both.
    """
    noise = sum(float(np.square(differences(*pair)).sum()) for pair in zip(actual, expected, strict=True))
    signal = sum(float(np.square(each[np.isfinite(each)].astype(np.float64)).sum()) for each in expected)
    return relative(noise, signal)


def snr_db(noise_to_signal: float) -> float:
    """Return the signal-to-noise ratio in dB: infinity without noise, minus infinity without a finite ratio."""
    if noise_to_signal == 0:
        return math.inf
    return -10 * math.log10(noise_to_signal) if math.isfinite(noise_to_signal) else -math.inf


def finite_or_none(value: float | None) -> float | None:
    """Return None in place of NaN and infinity, which JSON lacks: the SNR is infinite if outputs are exactly equal."""
    return value if value is not None and math.isfinite(value) else None


def is_undefined(weight: Array) -> bool:
    """Return whether a weight holds NaN or +inf; a scalar, such as a bound, and -inf, which masks, do not count."""
    return weight.ndim > 0 and bool((np.isnan(weight) | np.isposinf(weight)).any())
