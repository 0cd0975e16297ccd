"""Energy of an inference, from counters read before and after each turn of an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.latency.statistics import CONFIDENCE, MIN_ROUNDS
from edgevit.types import Interval

IDLE_SLICES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEstimate:
    """Energy of one inference of a whole batch, above that of the idle device."""

    joules: float
    interval: Interval | None  # 99 %, from the differences between turns and between idle slices; None below 8 turns
    idle_w: float

    @property
    def is_above_idle(self) -> bool:
        """Whether the interval leaves out zero: else the device's own fluctuations hide the inference."""
        return self.interval is None or self.interval.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRecord:
    """Readings of energy counters around the turns of one engine, and of the idle device.

    Raises UsageError if the fields contradict each other.
    """

    sources: tuple[str, ...]
    idle_w: tuple[tuple[float, ...], ...]  # mean power of each slice of idle time, by source
    turns_j: tuple[tuple[float, ...], ...]  # energy of each turn, by source
    turns_s: tuple[float, ...]
    inferences: int  # in each turn, an unrecorded one included

    def __post_init__(self) -> None:
        rows = (*self.idle_w, *self.turns_j)
        if len(self.turns_s) != len(self.turns_j) or any(len(row) != len(self.sources) for row in rows):
            raise UsageError("energy record: each turn and each idle slice needs one value for each source")
        if not self.turns_j or not self.idle_w or self.inferences < 1:
            raise UsageError("energy record: it needs at least one turn, one idle slice and one inference")

    def per_inference(self) -> dict[str, EnergyEstimate]:
        """Return the energy of one inference by source.

        A counter that is updated rarely compared with a turn makes single turns wrong, and the interval wide.
        """
        turns, idle = np.asarray(self.turns_j, float), np.asarray(self.idle_w, float)
        seconds = np.asarray(self.turns_s, float)[:, None]
        net = (turns - idle.mean(axis=0) * seconds) / self.inferences
        idle_error = _standard_error(idle) * float(seconds.mean()) / self.inferences
        has_interval = len(turns) >= MIN_ROUNDS and len(idle) > 1
        margins = _quantile(min(len(turns), len(idle)) - 1) * np.hypot(_standard_error(net), idle_error)
        return {
            name: EnergyEstimate(
                joules=float(value),
                interval=Interval(float(value - margin), float(value + margin)) if has_interval else None,
                idle_w=float(power),
            )
            for name, value, margin, power in zip(
                self.sources, net.mean(axis=0), margins, idle.mean(axis=0), strict=True
            )
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EnergyRecord:
        return cls(
            sources=tuple(data["sources"]),
            idle_w=tuple(tuple(row) for row in data["idle_w"]),
            turns_j=tuple(tuple(row) for row in data["turns_j"]),
            turns_s=tuple(data["turns_s"]),
            inferences=data["inferences"],
        )


def rises_j(before_j: Sequence[float | None], after_j: Sequence[float | None]) -> tuple[float, ...] | None:
    """Return the rise of each energy counter; None if one of them could not be read."""
    spent_j = [high - low for low, high in zip(before_j, after_j, strict=True) if low is not None and high is not None]
    return tuple(spent_j) if len(spent_j) == len(before_j) else None


def _standard_error(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the mean of each column; 0 for a single row, which has none."""
    return np.zeros(rows.shape[1]) if len(rows) < 2 else rows.std(axis=0, ddof=1) / math.sqrt(len(rows))


def _quantile(freedom: int) -> float:
    """Return the quantile of Student's t for CONFIDENCE, by its expansion around the normal one (1 % low at 7)."""
    z, n = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), max(1, freedom)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
