"""Load an engine and record the time and memory it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from edgevit.peak_memory import resident_mb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loading:
    """Time and memory of loading an engine. Megabytes are 2**20 bytes."""

    load_s: float
    memory_rise_mb: float | None  # rise of this process's resident memory; None if the system does not report it
    peak_memory_mb: float | None = None  # peak of a fresh process that loads and runs the engine; None if not measured


def timed_load(load: Callable[[], T]) -> tuple[T, Loading]:
    """Call `load` and return its result with the time and memory it took.

    For example `engine, loading = timed_load(lambda: runtime.open(path, options))`.
    """
    before_mb, start = resident_mb(), time.perf_counter()
    loaded = load()
    load_s = time.perf_counter() - start
    return loaded, Loading(load_s, memory_rise_mb(before_mb))


def memory_rise_mb(before_mb: float | None) -> float | None:
    """Return by how much resident memory has grown since `resident_mb()` gave `before_mb`; None if unknown."""
    now_mb = resident_mb()
    return None if before_mb is None or now_mb is None else now_mb - before_mb
