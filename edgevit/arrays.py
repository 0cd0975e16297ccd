"""Differences of arrays in which infinity and NaN at the same places are equal: a model may output them itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgevit.types import Array


def differences(values: Array, expected: Array) -> NDArray[np.float64]:
    """Return the absolute differences in float64; infinity where only one of both is finite, or their signs differ."""
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


def is_undefined(weight: Array) -> bool:
    """Return whether a weight holds NaN or +inf; a scalar, such as a bound, and -inf, which masks, do not count."""
    return weight.ndim > 0 and bool((np.isnan(weight) | np.isposinf(weight)).any())
