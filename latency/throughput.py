"""Saturated throughput: batches and streams are raised until the rate stops growing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputPoint:
    """The rate at one setting. A stream is one inference in flight."""

    batch: int
    streams: int
    images_per_s: float
    inferences: int
    elapsed_s: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ThroughputPoint:
        return cls(
            batch=int(data["batch"]),
            streams=int(data["streams"]),
            images_per_s=float(data["images_per_s"]),
            inferences=int(data["inferences"]),
            elapsed_s=float(data["elapsed_s"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """All settings that were tried, in order, apart from the timed rounds of the latency."""

    points: tuple[ThroughputPoint, ...]  # at least one

    @property
    def best(self) -> ThroughputPoint:
        return max(self.points, key=lambda point: point.images_per_s)

    def to_json(self) -> dict[str, Any]:
        return {"best": asdict(self.best), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Throughput:
        return cls(points=tuple(map(ThroughputPoint.from_json, data["points"])))
