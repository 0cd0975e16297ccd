"""Saturated throughput: batches and streams are raised until the rate stops growing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgevit.errors import BuildError
from edgevit.runtimes.base import Engine, ThroughputRunner
from edgevit.types import Array

MIN_GROWTH = 1.03  # a setting that gains less is the last
_WARMUP_FRACTION = 0.2


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


def saturate(
    engine: Engine, feeds: Mapping[int, Mapping[str, Array]], streams: Sequence[int], *, seconds: float
) -> Throughput | None:
    """Raise the streams at each batch until the rate stops growing, then the batch; None if the runtime has no streams.

    `feeds` are the inputs by batch, `streams` the numbers to try, both in rising order. Each setting takes `seconds`.
    """
    points: list[ThroughputPoint] = []
    best = 0.0
    for batch, arrays in feeds.items():
        found = _raise_streams(engine, arrays, batch=batch, streams=streams, seconds=seconds)
        points += found
        rate = max((point.images_per_s for point in found), default=0.0)
        if rate < MIN_GROWTH * best:
            break
        best = rate
    return Throughput(points=tuple(points)) if points else None


def _raise_streams(
    engine: Engine, feeds: Mapping[str, Array], *, batch: int, streams: Sequence[int], seconds: float
) -> list[ThroughputPoint]:
    points: list[ThroughputPoint] = []
    for count in streams:
        try:
            point = _run_streams(engine, feeds, batch=batch, streams=count, seconds=seconds)
        except BuildError:
            if not points:
                raise
            break  # the device has no memory for so many
        if point is None:
            return []
        points.append(point)
        if len(points) > 1 and points[-1].images_per_s < MIN_GROWTH * points[-2].images_per_s:
            break
    return points


def _run_streams(
    engine: Engine, feeds: Mapping[str, Array], *, batch: int, streams: int, seconds: float
) -> ThroughputPoint | None:
    """Return the rate of so many streams; None if the runtime has no streams."""
    runner = engine.throughput_runner(streams)
    if runner is None:
        return None
    try:
        return _measure(runner, feeds, batch=batch, streams=streams, seconds=seconds)
    finally:
        runner.close()


def _measure(
    runner: ThroughputRunner, feeds: Mapping[str, Array], *, batch: int, streams: int, seconds: float
) -> ThroughputPoint:
    runner.run_for(feeds, _WARMUP_FRACTION * seconds)
    inferences, elapsed_s = runner.run_for(feeds, seconds)
    return ThroughputPoint(
        batch=batch,
        streams=streams,
        images_per_s=batch * inferences / elapsed_s,
        inferences=inferences,
        elapsed_s=elapsed_s,
    )
