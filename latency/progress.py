"""MeasureProgress: how far a measurement is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class MeasureProgress:
    """How far a measurement is."""

    stage: str  # "warm-up of NAME" or "measuring"
    fraction: float  # of the stage, 0 to 1
    remaining_s: float | None  # None during the warm-up

    def __str__(self) -> str:
        """Return such as "measuring, 25%, 30 s left"."""
        remaining = "" if self.remaining_s is None else f", {self.remaining_s:.0f} s left"
        return f"{self.stage}, {self.fraction:.0%}{remaining}"


OnMeasure: TypeAlias = Callable[[MeasureProgress], None]


def ignore_progress(progress: MeasureProgress) -> None:
    """Show nothing."""
    del progress
