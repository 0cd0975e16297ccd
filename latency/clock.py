"""The clock, how fine it is, and how fast the machine was while it ran."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

now_ns = time.perf_counter_ns  # monotonic; on Linux CLOCK_MONOTONIC, which NTP slews and never sets back

_PROBE_VALUES = 4096  # 16 KB of float32: half of the smallest first-level cache
_PROBE_STEPS = 200
_CACHE_LINE = 64
_PROBE_TRIES = 5


@dataclass(frozen=True, slots=True)
class Probe:
    """One reading of `machine_speed`, and when it was taken (ns from the start of the measurement)."""

    start_ns: int
    ms: float


def resolution_ns(steps: int = 64) -> int:
    """The smallest difference that two readings of the clock can show, in ns, measured over `steps` ticks."""
    smallest = None
    for _ in range(steps):
        start = now_ns()
        while (step := now_ns() - start) == 0:
            pass
        smallest = step if smallest is None else min(smallest, step)
    return smallest or 1


def machine_speed() -> float:
    """The time, in ms, of a fixed piece of single-threaded arithmetic: a yardstick for the machine, not for a model.

    Its work never changes, so two readings differ only where the machine did: other processes, clocks, heat. It is
    the median of five tries of 200 multiply-adds over 4096 float32 values, each well below a millisecond. It does
    not see memory bandwidth or a GPU.
    """
    values = _aligned(_PROBE_VALUES)
    values.fill(0.5)
    return statistics.median(_timed_steps(values) for _ in range(_PROBE_TRIES))


def _aligned(count: int) -> NDArray[np.float32]:
    """Memory that begins with a cache line: otherwise the address alone decides 13 % (on an EPYC core)."""
    raw = np.empty(4 * count + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + 4 * count].view(np.float32)


def _timed_steps(values: NDArray[np.float32]) -> float:
    scale, offset = np.float32(0.75), np.float32(0.125)  # fixed point 0.5: no overflow, no subnormal numbers
    start = now_ns()
    for _ in range(_PROBE_STEPS):
        np.multiply(values, scale, out=values)
        np.add(values, offset, out=values)
    return (now_ns() - start) / 1e6
