"""Saturated throughput: batches and streams are raised until the rate stops growing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgevit.errors import BuildError
from edgevit.latency.candidate import Candidate
from edgevit.runtimes.base import Engine, ThroughputRunner, available_cores
from edgevit.types import Array

_GPU_STREAMS = 16  # the most that are tried on a GPU
MIN_GROWTH = 1.03  # a setting that gains less is the last
_WARMUP_FRACTION = 0.2
_TURN_MS = 100.0  # least time of a timed run with several inferences in flight
_LEAST_EACH, _MOST_EACH = 2, 16  # inferences of each stream in a timed run


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


def in_streams(candidate: Candidate, runner: ThroughputRunner, feeds: Mapping[str, Array]) -> Candidate:
    """Return a candidate each of whose timed runs is many inferences of `candidate`, one in each stream at a time.

    Its batch is the images of such a run, so that its time for an image is that under full load.
    """
    runner.run_for(feeds, 0.0)  # the first inferences take longer
    _, elapsed_s = runner.run_for(feeds, 0.0)  # one inference in each stream
    count = runner.streams * min(_MOST_EACH, max(_LEAST_EACH, math.ceil(_TURN_MS / (1e3 * elapsed_s))))

    def run() -> Array:
        return np.asarray(runner.run_while(feeds, lambda started: started < count))

    return replace(candidate, infer=run, batch=candidate.batch * count, first_inference_ms=None, compute_ms=None)


def stream_counts(threads: int | None, *, on_gpu: bool = False) -> tuple[int, ...]:
    """Return the numbers of streams to try: powers of two, to twice the threads, whose number a GPU does not know."""
    most = _GPU_STREAMS if on_gpu else 2 * (threads or available_cores())
    return tuple(2**power for power in range(most.bit_length()))


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
