"""The latency stage of an export: no problem of the measurement loses verified bundles."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.errors import MeasureError
from edgevit.latency import measure as latency
from edgevit.latency.measure import Candidate, LatencyReport
from edgevit.pipeline import run as pipeline


def export(out: Path, *options: str) -> dict[str, Any]:
    written = out / "result.json"
    command = ["export", "shiftvit_cifar10", "--fmt", "ort", "--out", str(out), "--json", str(written), *options]
    assert main(command) == 0
    result: dict[str, Any] = json.loads(written.read_text())
    assert Bundle.open(out / "shiftvit_cifar10-fp32-ort").path.exists()
    return result


def test_a_failed_measurement_publishes_the_bundles_and_states_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> tuple[LatencyReport, ...]:
        raise MeasureError("the clock stood still")

    monkeypatch.setattr(pipeline, "measure", fail)
    result = export(tmp_path)
    assert result["latency"] == [] and result["latency_problems"] == ["the clock stood still"]
    assert "note: no latency: the clock stood still" in " ".join(capsys.readouterr().out.split())


def test_a_candidate_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = latency.candidate_from_engine

    def fail_for_torch(name: str, *arguments: Any, **options: Any) -> Candidate:
        if name == "torch":
            raise MeasureError("torch failed")
        return original(name, *arguments, **options)

    monkeypatch.setattr(pipeline, "candidate_from_engine", fail_for_torch)
    result = export(tmp_path, "--latency-time", "2")
    assert [row["name"] for row in result["latency"]] == ["ort"]
    assert result["latency_problems"] == ["torch failed"]


def test_the_latency_time_bounds_a_slow_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two busy cores an export ended with status 7, since PyTorch ran 57 instead of 64 times in 240 s."""

    def slow_down(candidates: Sequence[Candidate], *arguments: Any) -> tuple[LatencyReport, ...]:
        def slowly(infer: Callable[[], object]) -> object:
            time.sleep(0.2)
            return infer()

        slow = [dataclasses.replace(each, infer=functools.partial(slowly, each.infer)) for each in candidates]
        return latency.measure(slow, *arguments)

    monkeypatch.setattr(pipeline, "measure", slow_down)
    result = export(tmp_path, "--latency-time", "3")
    assert all(0 < row["runs"] < 64 for row in result["latency"])
    assert all(any("of 64 runs" in warning for warning in row["doubts"]) for row in result["latency"])


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_an_invalid_latency_time_is_a_usage_error(seconds: str, tmp_path: Path) -> None:
    command = ["export", "shiftvit_cifar10", "--fmt", "ort", "--out", str(tmp_path)]
    assert main([*command, f"--latency-time={seconds}"]) == 2
    assert list(tmp_path.iterdir()) == []
