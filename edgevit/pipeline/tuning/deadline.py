"""The time limit of a search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class OutOfTimeError(Exception):
    """The time for the search is up. It ends the search, and is not an error."""


class Deadline:
    """A time limit. `reserve_s` at its end is for the final measurement and the checks of the winner."""

    def __init__(
        self,
        limit_s: float,
        *,
        reserve_s: float = 0.0,
        start_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start_s` is the time of the clock from which the limit counts (default: now)."""
        self._clock = clock
        self._start_s = clock() if start_s is None else start_s
        self._end_s = self._start_s + limit_s
        self._limit_s, self._reserve_s = limit_s, reserve_s
        self._fraction = 1.0

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    @property
    def remaining_s(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self._end_s - self._clock())

    @property
    def search_s(self) -> float:
        """Seconds that the search, or its current step, may still take, at least 0."""
        step_s = self._fraction * self._limit_s - self.elapsed_s if self._fraction < 1 else math.inf
        return max(0.0, min(step_s, self.remaining_s - self._reserve_s))

    def check(self) -> None:
        """Raise OutOfTimeError if the search has to end."""
        if self.search_s <= 0:
            raise OutOfTimeError

    @contextmanager
    def until(self, fraction: float) -> Iterator[None]:
        """End a step when this fraction of the whole time has passed, so that the steps after it have some as well."""
        self._fraction = fraction
        try:
            yield
        finally:
            self._fraction = 1.0

    def shorten(self, limit_s: float) -> None:
        """End in `limit_s` seconds at the latest, as after an interrupt."""
        self._end_s = min(self._end_s, self._clock() + limit_s)
