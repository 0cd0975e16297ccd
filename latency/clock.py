"""Clock resolution and a machine-speed probe."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

now_ns = time.perf_counter_ns  # CLOCK_MONOTONIC on Linux: NTP changes its rate but never sets it back

_TICKS = 64
_PROBE_VALUES = 4096  # 16 KB of float32: half of the smallest L1 data cache in use
_PROBE_STEPS = 200
_CACHE_LINE = 64
_PROBE_TRIES = 5


@dataclass(frozen=True, slots=True)
class Probe:
    """One reading of `machine_speed_ms` and its time, in ns from the start of the measurement."""

    start_ns: int
    ms: float


def resolution_ns() -> int:
    """Return the smallest difference between two readings in ns, over 64 ticks: a tick, or the time of a reading."""
    smallest = None
    for _ in range(_TICKS):
        start = now_ns()
        while (step := now_ns() - start) == 0:
            pass
        smallest = step if smallest is None else min(smallest, step)
    return smallest or 1


def machine_speed_ms() -> float:
    """Return the time of a fixed, single-threaded computation in ms: a measure of the machine, not of a model.

    Two readings differ only if the machine changed: other processes, clocks, heat. The computation is the median of
    five tries of 200 multiply-adds over 4096 float32 values, each well below a millisecond. It does not depend on
    memory bandwidth or a GPU.
    """
    values = _aligned(_PROBE_VALUES)
    values.fill(0.5)
    return statistics.median(_timed_steps(values) for _ in range(_PROBE_TRIES))


def _aligned(count: int) -> NDArray[np.float32]:
    """Return an array that starts at a cache line; otherwise its address alone changes the time by 13 % (EPYC)."""
    raw = np.empty(4 * count + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + 4 * count].view(np.float32)


def _timed_steps(values: NDArray[np.float32]) -> float:
    scale, offset = np.float32(0.75), np.float32(0.125)  # 0.5 stays 0.5: no overflow, no subnormal numbers
    start = now_ns()
    for _ in range(_PROBE_STEPS):
        np.multiply(values, scale, out=values)
        np.add(values, offset, out=values)
    return (now_ns() - start) / 1e6
