"""`edgevit latency`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from tests.helpers.cli import status


def test_latency_measures_side_by_side(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.json"
    paths = [shared_bundle(fmt).path for fmt in ("ort", "openvino")]
    arguments: list[str | Path] = [
        *paths,
        "--duration",
        "0.5",
        "--threads",
        "1",
        "--against",
        "torch,onnx",
        "--json",
        out,
    ]
    assert status("latency", *arguments, "-v") == 0
    rows = json.loads(out.read_text())["latency"]
    assert [row["name"] for row in rows] == [paths[0].name, paths[1].name, "torch", "onnx"]
    for row in rows:
        assert row["runs"] >= 100
        assert len(row["evidence"]["samples_ms"]) == row["runs"]
        assert row["p50_ms"] <= row["p90_ms"]
    peaks = [row["peak_memory_mb"] for row in rows]
    assert all(20 < peak < 2000 for peak in peaks[:2])  # each in a process of its own
    assert peaks[2:] == [None, None]
    printed = capsys.readouterr().out
    assert "images/s" in printed and "peak MB" in printed


def test_latency_rejects_an_unknown_name(bundle: Bundle, one_line: Callable[[], str]) -> None:
    assert status("latency", bundle.path, "--against", "tensorflow") == 2
    assert "unknown format 'tensorflow'" in one_line()
