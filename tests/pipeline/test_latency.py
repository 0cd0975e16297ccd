"""The latency stage of an export: no problem of the measurement loses verified bundles."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgevit.bundles.bundle import Bundle
from edgevit.errors import MeasureError, UsageError
from edgevit.latency.candidate import Candidate, candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.report import LatencyReport
from edgevit.models.loading import from_module
from edgevit.pipeline import run as pipeline
from edgevit.pipeline import side_by_side, source
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.onnx_model import load_onnx_model, original_engine
from edgevit.pipeline.report import ExportReport
from edgevit.runtimes.base import Engine
from tests.helpers.graphs import HEADER, noise, parse


def export(out: Path) -> ExportReport:
    """Export a small model with a limit of 3 s for its latency."""
    model = from_module(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), example_input=torch.rand(1, 3, 4, 4))
    report = pipeline.run(model, ExportConfig(formats=("ort",), out=out, latency_time_s=3.0))
    assert Bundle.open(report.bundles[0].path).path.exists()
    return report


def test_a_failed_measurement_publishes_the_bundles_and_states_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> tuple[LatencyReport, ...]:
        raise MeasureError("the clock stood still")

    monkeypatch.setattr(side_by_side, "measure", fail)
    report = export(tmp_path)
    assert report.latencies == () and report.latency_problems == ("the clock stood still",)
    assert report.to_json()["latency_problems"] == ["the clock stood still"]


def test_a_candidate_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_for_torch(name: str, *arguments: Any, **options: Any) -> Candidate:
        if name == "torch (CPU)":
            raise MeasureError("torch failed")
        return candidate_from_engine(name, *arguments, **options)

    monkeypatch.setattr(side_by_side, "candidate_from_engine", fail_for_torch)
    report = export(tmp_path)
    assert [each.name for each in report.latencies] == ["ort"]
    assert report.latency_problems == ("torch failed",)


def test_a_slow_candidate_gets_fewer_runs_within_the_latency_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two busy cores an export ended with status 7, since PyTorch ran 57 instead of 64 times in 240 s."""

    def slow_down(candidates: Sequence[Candidate], *arguments: Any) -> tuple[LatencyReport, ...]:
        def slowly(infer: Callable[[], object]) -> object:
            time.sleep(0.2)
            return infer()

        slow = [dataclasses.replace(each, infer=functools.partial(slowly, each.infer)) for each in candidates]
        return measure(slow, *arguments)

    monkeypatch.setattr(side_by_side, "measure", slow_down)
    report = export(tmp_path)
    assert [each.name for each in report.latencies] == ["torch (CPU)", "ort"]
    assert all(0 < each.runs < 64 for each in report.latencies)
    assert all(any("of 64 runs" in warning for warning in each.warnings) for each in report.latencies)


def test_a_file_that_cannot_be_measured_itself_loses_no_bundle(tmp_path: Path) -> None:
    """It is opened a second time when the bundles are verified, and by then it may be gone."""
    file = tmp_path / "net.onnx"
    graph = parse(f"{HEADER} g (float[1, 8] x) => (float[1, 4] y) {{ y = MatMul (x, w) }}", w=noise(8, 4))
    graph.save(file)

    def lose(stage: str, elapsed_s: float | None) -> None:
        if stage == "ort: load" and elapsed_s is not None:
            file.unlink()

    config = ExportConfig(formats=("ort",), out=tmp_path / "out", latency_time_s=3.0)
    report = pipeline.run(load_onnx_model(file), config, lose)
    assert Bundle.open(report.bundles[0].path).manifest.parity is not None
    assert [each.name for each in report.latencies] == ["ort"]
    (problem,) = report.latency_problems
    assert "net.onnx" in problem


def test_the_engine_of_the_file_itself_is_closed_after_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, opened = tmp_path / "net.onnx", list[Engine]()
    graph = parse(f"{HEADER} g (float[1, 8] x) => (float[1, 4] y) {{ y = MatMul (x, w) }}", w=noise(8, 4))
    graph.save(file)

    def open_and_keep(*arguments: Any, **options: Any) -> Engine:
        opened.append(original_engine(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(source, "original_engine", open_and_keep)
    pipeline.run(load_onnx_model(file), ExportConfig(formats=("ort",), out=tmp_path / "out", latency_time_s=3.0))
    (engine,) = opened
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run({"x": noise(1, 8)})


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_an_invalid_latency_time_is_a_usage_error(seconds: float) -> None:
    with pytest.raises(UsageError, match="--latency-time"):
        ExportConfig(formats=("ort",), latency_time_s=seconds)
