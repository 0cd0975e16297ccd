"""The search for the highest rate: it stops where the rate stops growing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from edgevit.errors import BuildError
from edgevit.latency.candidate import Candidate
from edgevit.latency.throughput import in_streams, saturate
from edgevit.runtimes import base
from edgevit.runtimes.base import Engine, ThroughputRunner
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array


class _Timed(ThroughputRunner):
    """A runner that keeps to a rate on its own clock, and remembers how many inferences were started."""

    def __init__(self, per_s: float, *, streams: int) -> None:
        self._per_s, self.streams, self.started = per_s, streams, list[int]()
        self.now_s = 0.0

    def _run_while(self, feeds: Mapping[str, Array], more: Callable[[int], bool]) -> int:
        self.started.append(next(count for count in range(1000) if not more(count)))
        self.now_s += self.started[-1] / self._per_s
        return self.started[-1]

    def close(self) -> None:
        pass


class _Runner(_Timed):
    """A runner that tells its rate without running."""

    def run_for(self, feeds: Mapping[str, Array], seconds: float) -> tuple[int, float]:
        return round(self._per_s * seconds / len(feeds["x"])), seconds


class _Engine(Engine):
    """An engine whose rate is known for each number of streams."""

    def __init__(self, rates: Mapping[int, float], *, most: int = 1024) -> None:
        self._rates, self._most, self.tried = rates, most, list[int]()

    def throughput_runner(self, streams: int) -> ThroughputRunner | None:
        self.tried.append(streams)
        if streams > self._most:
            raise BuildError(f"no memory for {streams}")
        return _Runner(self._rates[streams], streams=streams) if self._rates else None

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def executed_precision(self) -> ExecutedPrecision:
        raise NotImplementedError


def feeds(*batches: int) -> dict[int, dict[str, Array]]:
    return {batch: {"x": np.zeros(batch)} for batch in batches}


def test_streams_are_raised_until_the_rate_stops_growing() -> None:
    engine = _Engine({1: 100.0, 2: 180.0, 4: 181.0, 8: 900.0})
    found = saturate(engine, feeds(1), (1, 2, 4, 8), seconds=1.0)
    assert found is not None and engine.tried == [1, 2, 4]
    assert (found.best.streams, found.best.images_per_s) == (4, 181)


def test_batches_are_raised_until_the_rate_stops_growing() -> None:
    engine = _Engine({1: 100.0, 2: 100.0})
    found = saturate(engine, feeds(1, 2, 4), (1, 2), seconds=4.0)
    assert found is not None and [(point.batch, point.streams) for point in found.points] == [
        (1, 1), (1, 2), (2, 1), (2, 2),
    ]  # fmt: skip


def test_the_streams_end_where_the_memory_does() -> None:
    engine = _Engine({1: 100.0, 2: 180.0}, most=2)
    found = saturate(engine, feeds(1), (1, 2, 4, 8), seconds=1.0)
    assert found is not None and [point.streams for point in found.points] == [1, 2] and engine.tried == [1, 2, 4]
    with pytest.raises(BuildError, match="no memory for 1"):
        saturate(_Engine({1: 1.0}, most=0), feeds(1), (1, 2), seconds=1.0)


def test_an_engine_without_streams_has_no_throughput() -> None:
    assert saturate(_Engine({}), feeds(1), (1, 2), seconds=1.0) is None


@pytest.mark.parametrize(("per_s", "each"), [(10.0, 2), (160.0, 8), (10000.0, 16)])
def test_a_timed_run_under_load_is_of_many_inferences_and_counts_all_their_images(
    per_s: float, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _Timed(per_s, streams=2)
    monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter=lambda: runner.now_s))
    loaded = in_streams(Candidate(name="a", infer=lambda: None, batch=4), runner, feeds(4)[4])
    assert loaded.infer() == loaded.batch // 4
    assert runner.started == [2, 2, loaded.batch // 4]
    assert loaded.batch == 4 * 2 * each


def test_a_runner_keeps_all_streams_at_work_even_for_no_time() -> None:
    assert _Timed(1e6, streams=3).run_for(feeds(1)[1], 0.0)[0] == 3
