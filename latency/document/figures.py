"""Figures as text, with as many digits as they deserve."""

from __future__ import annotations

import math

from edgevit.latency.sampling.energy import EnergyEstimate
from edgevit.types import Interval

ABSENT = "-"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, never in exponent form if it is between 1e-4 and 1e7."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -4 <= magnitude < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def with_interval(value: float | None, interval: Interval | None, digits: int = 3) -> str:
    """Return "1.95 (1.90 to 2.01)"; a dash in place of an interval or a value that is unknown."""
    if value is None:
        return ABSENT
    bounds = ABSENT if interval is None else f"{figure(interval.low, digits)} to {figure(interval.high, digits)}"
    return f"{figure(value, digits)} ({bounds})"


def millijoules(energy: EnergyEstimate) -> str:
    """Return an energy in mJ with its interval, or the most that it can be if the device's fluctuations hide it."""
    interval = energy.interval and Interval(1e3 * energy.interval.low, 1e3 * energy.interval.high)
    if interval is not None and not energy.is_above_idle:
        return f"at most {figure(max(interval.high, 0))}"
    return with_interval(1e3 * energy.joules, interval)


def megabytes(size_bytes: int | None) -> str:
    return ABSENT if size_bytes is None else figure(size_bytes / 1e6)


def whole_range(low: float, high: float) -> str:
    """Return "900 to 1500", or "1500" if both round to the same."""
    return f"{high:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
