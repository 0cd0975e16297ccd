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
from edgevit.pipeline import side_by_side
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.report import ExportReport


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


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_an_invalid_latency_time_is_a_usage_error(seconds: float) -> None:
    with pytest.raises(UsageError, match="--latency-time"):
        ExportConfig(formats=("ort",), latency_time_s=seconds)
