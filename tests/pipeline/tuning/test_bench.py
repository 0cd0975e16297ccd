"""The bench: an engine whose first inference is too slow does not race."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevit.latency.candidate import Candidate, candidate_from_engine
from edgevit.pipeline.tuning import bench
from edgevit.pipeline.tuning.bench import Bench
from edgevit.pipeline.tuning.racing import RUNGS
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.pipeline.tuning.workspace import Workspace
from edgevit.runtimes.base import BuildOptions, Engine, ThroughputRunner
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, TensorSpec

INT8 = Configuration(variant=Variant(fmt="openvino", precision="int8"), threads=1)
F16 = INT8.with_setting("inference_precision", "f16")
FEEDS = {"x": np.zeros((1, 1), np.float32)}


class _Engine(Engine):
    """Counts its inferences."""

    inputs = outputs = (TensorSpec("x", "float32", (1, 1)),)

    def __init__(self, options: BuildOptions, runs: Counter[str]) -> None:
        self._settings, self._runs = str(options.session), runs

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._runs[self._settings] += 1
        time.sleep(1e-4)  # the clock has to be fine enough
        return dict(feeds)

    def executed_precision(self) -> ExecutedPrecision:
        return ExecutedPrecision()

    def throughput_runner(self, streams: int) -> ThroughputRunner:
        raise AssertionError("an engine that is too slow has no streams") if self._settings else NotImplementedError


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Inferences by session settings; the first one with f16 takes 17 s instead of 20 ms."""
    counted: Counter[str] = Counter()
    runtime = SimpleNamespace(
        session=contextlib.nullcontext, open=lambda _path, options: _Engine(options, counted), title="OpenVINO"
    )
    monkeypatch.setattr(bench, "get_runtime", lambda _: runtime)

    def timed(name: str, *arguments: Any, **options: Any) -> Candidate:
        candidate = candidate_from_engine(name, *arguments, **options)
        return replace(candidate, first_inference_ms=17_000.0 if "f16" in name else 20.0)

    monkeypatch.setattr(bench, "candidate_from_engine", timed)
    short = [replace(plan, min_duration_s=0.01, turn_s=0.001, warmup_max_s=0.05, clock_settle_s=0.0) for plan in RUNGS]
    monkeypatch.setattr(bench, "RUNGS", short)
    return counted


def opened(tmp_path: Path) -> Bench:
    bundle: Any = SimpleNamespace(
        engine_path=tmp_path / "model.xml", options=BuildOptions(), manifest=SimpleNamespace(files=())
    )
    return Bench(
        workspace=Workspace(tmp_path),
        bundles={INT8.variant.name: bundle},
        feeds=lambda _: FEEDS,
        check_time=lambda: None,
        remaining_s=lambda: 60.0,
        on_refused=lambda name, error: pytest.fail(f"{name}: {error}"),
    )


def test_one_inference_is_enough_to_drop_a_setting_that_is_too_slow(runs: Counter[str], tmp_path: Path) -> None:
    outcome = opened(tmp_path).race([INT8, F16])
    assert outcome is not None and outcome.kept == (INT8.name,)
    assert runs["inference precision f16"] == 1 < runs[""]
    dropped = outcome.standing(F16.name)
    assert dropped.dropped and dropped.runs == 1 and dropped.ratio == 850


def test_a_candidate_that_is_too_slow_is_not_compared(runs: Counter[str], tmp_path: Path) -> None:
    assert opened(tmp_path).compare(INT8, [F16]) is None
    assert runs["inference precision f16"] == 1


def test_a_setting_that_is_too_slow_is_dropped_before_its_streams_run(runs: Counter[str], tmp_path: Path) -> None:
    """The incumbent has no streams here, which ends the test after the choice."""
    with pytest.raises(NotImplementedError):
        opened(tmp_path).race([replace(each, streams=1) for each in (F16, INT8)])
    assert runs["inference precision f16"] == 1
