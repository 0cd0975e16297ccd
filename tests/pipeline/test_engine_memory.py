"""Engines are closed after parity if they are large or no longer needed, and loaded again to be compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgevit.models.loading import from_module
from edgevit.pipeline import engine_memory
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.report import ExportReport
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine


@pytest.fixture
def open_at_build(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of open engines, each time that one is loaded to be measured or checked."""
    engines: set[int] = set()
    counts: list[int] = []
    load, close = OnnxRuntimeEngine._load, OnnxRuntimeEngine.close

    def count_load(self: OnnxRuntimeEngine, *args: object, **options: object) -> object:
        session = load(self, *args, **options)  # type: ignore[arg-type]
        if not isinstance(self._source, bytes):
            engines.add(id(self))
            counts.append(len(engines))
        return session

    def count_close(self: OnnxRuntimeEngine) -> None:
        engines.discard(id(self))
        close(self)

    monkeypatch.setattr(OnnxRuntimeEngine, "_load", count_load)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", count_close)
    return counts


def export(out: Path, *, latency: bool) -> ExportReport:
    model = from_module(nn.Linear(4, 2), example_input=torch.zeros(1, 4))
    config = ExportConfig(formats=("onnx", "ort"), out=out, latency=latency, latency_time_s=0.2)
    return pipeline.run(model, config, watch_memory=True)


def test_without_later_stages_one_engine_is_open_at_a_time(tmp_path: Path, open_at_build: list[int]) -> None:
    report = export(tmp_path, latency=False)
    assert max(open_at_build) == 1
    if sys.platform == "linux":
        assert all(stage.peak_mb and stage.peak_mb > 100 for stage in report.stages)  # -v prints them


def test_large_engines_are_closed_and_loaded_again_for_latency(
    tmp_path: Path, open_at_build: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_memory, "LARGE_BYTES", 0)
    export(tmp_path, latency=True)
    assert open_at_build[-2:] == [1, 2]
    assert max(open_at_build[:-2]) == 1


def test_small_engines_stay_open_for_latency(tmp_path: Path, open_at_build: list[int]) -> None:
    export(tmp_path, latency=True)
    assert open_at_build[-1] == 2
