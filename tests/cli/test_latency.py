"""`edgevit latency`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgevit.bundles.bundle import Bundle
from edgevit.runtimes.peers import DirectOpenVinoEngine
from edgevit.runtimes.precision import ExecutedPrecision
from tests.helpers import samples
from tests.helpers.cli import status
from tests.helpers.json_schema import violations

SCHEMA = Path(__file__).parents[2] / "docs" / "report_schema.json"


def test_latency_measures_side_by_side(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report, path = tmp_path / "latency.json", tmp_path / "report.json", shared_bundle("ort").path
    arguments: list[str | Path] = [
        path,
        "--duration",
        "0.1",
        "--threads",
        "1",
        "--against",
        "torch",
        "--roofline",
        "--layers",
        "--json",
        out,
        "--report",
        report,
        "-v",
    ]
    assert status("latency", *arguments) == 0
    rows = json.loads(out.read_text())["latency"]
    assert [row["name"] for row in rows] == [path.name, "torch (CPU)"]
    for row in rows:
        assert row["runs"] >= 100
        assert len(row["evidence"]["samples_ms"]) == row["runs"]
        assert row["p50_ms"] <= row["p90_ms"]
    peak, none = (row["peak_memory_mb"] for row in rows)
    assert 20 < peak < 2000 and none is None  # in a process of its own
    own, peer = (row["evidence"] for row in rows)
    assert {group["name"] for group in own["layers"]["by_kind"]} >= {"Conv"} and peer["layers"] is None
    assert own["roofline"]["limit_ms"] > 0 and own["roofline"]["macs_per_s"]["int8"] > 0
    assert peer["roofline"]["runtime"] == "torch (CPU)" and own["roofline"]["macs"] == peer["roofline"]["macs"]
    printed = capsys.readouterr().out
    assert "time by module" in printed and "best rates: ONNX Runtime" in printed
    assert violations(json.loads(report.read_text()), json.loads(SCHEMA.read_text())) == []
    assert f"report: {report}" in printed
    assert "images/s" in printed and "host MB" in printed and "device: " in printed


def test_a_report_that_cannot_be_written_costs_no_measurement(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "latency.json", shared_bundle("ort").path
    before = (path / "latency.json").read_bytes() if (path / "latency.json").exists() else b""
    report = tmp_path / f"{'r' * 250}.md"  # a valid name, but not with the ending of a temporary file
    assert status("latency", path, "--duration", "0.1", "--threads", "1", "--json", out, "--report", report) == 2
    output = capsys.readouterr()
    assert f"{path.name}: p50 " in output.out
    assert f"edgevit: cannot write {report}: File name too long" in output.err
    found = json.loads(out.read_text())
    assert found["exit_status"] == 2 and found["latency"][0]["name"] == path.name
    assert (path / "latency.json").read_bytes() != before


def test_latency_rejects_an_unknown_name(bundle: Bundle, one_line: Callable[[], str]) -> None:
    assert status("latency", bundle.path, "--against", "tensorflow") == 2
    assert "unknown format 'tensorflow'" in one_line()


def test_a_misspelt_peer_is_corrected(shared_bundle: Callable[[str], Bundle], one_line: Callable[[], str]) -> None:
    assert status("latency", shared_bundle("ort").path, "--against", "naive-onx") == 2
    assert "Did you mean 'naive-onnx'?" in one_line()


@pytest.mark.large
def test_a_peer_that_answers_wrongly_is_measured_and_named(
    shared_bundle: Callable[[str], Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = DirectOpenVinoEngine._infer
    monkeypatch.setattr(
        DirectOpenVinoEngine, "_infer", lambda *args: {name: 2 * array for name, array in right(*args).items()}
    )
    out, path = tmp_path / "latency.json", shared_bundle("ort").path
    against = ("--against", "ov-direct", "--duration", "0.1", "--threads", "1")
    assert status("latency", path, *against, "--json", out) == 0
    rows = json.loads(out.read_text())["latency"]
    assert [(row["name"], row["parity"]["passed"]) for row in rows] == [(path.name, True), ("ov-direct", False)]
    printed = capsys.readouterr().out
    assert "ov-direct WRONG" in printed and "note: ov-direct: its outputs are not the reference's: max error" in printed


@pytest.mark.parametrize(("executed", "passes"), [("tf32", True), pytest.param("fp32", False, marks=pytest.mark.large)])
def test_a_peer_in_tf32_is_judged_by_its_mantissa(
    shared_bundle: Callable[[str], Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    executed: str,
    passes: bool,
) -> None:
    right = DirectOpenVinoEngine._infer
    monkeypatch.setattr(
        DirectOpenVinoEngine, "_infer", lambda *args: {name: array * 1.0005 for name, array in right(*args).items()}
    )
    monkeypatch.setattr(DirectOpenVinoEngine, "executed_precision", lambda _: ExecutedPrecision({executed: 1}))
    out = tmp_path / "latency.json"
    against = ("--against", "ov-direct", "--duration", "0.1", "--threads", "1")
    assert status("latency", shared_bundle("ort").path, *against, "--json", out) == 0
    assert json.loads(out.read_text())["latency"][1]["parity"]["passed"] is passes


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("0s", "is not a time"),
        ("later", "is not a time"),
        ("1s", "a sustained run takes 3 s to 24 h"),
        ("nan", "is not a time"),
    ],
)
def test_a_wrong_time_of_a_sustained_run_ends_in_one_line(
    shared_bundle: Callable[[str], Bundle], one_line: Callable[[], str], time: str, message: str
) -> None:
    assert status("latency", shared_bundle("ort").path, "--sustained", time) == 2
    assert message in one_line()


def test_floating_clocks_end_the_command_before_it_measures(
    shared_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch, one_line: Callable[[], str]
) -> None:
    floating = dataclasses.replace(samples.BOARD, governor="schedutil", min_mhz=408.0, max_mhz=2201.0)
    monkeypatch.setattr("edgevit.latency.environment.Environment.capture", lambda: floating)
    assert status("latency", shared_bundle("ort").path, "--require-locked") == 7
    assert "not locked: processor clock (governor schedutil, 408 to 2201 MHz)" in one_line()


@pytest.mark.parametrize(
    ("against", "on_gpu"),
    [("torch", False), ("naive-onnx,openvino", False), ("torch-cuda", True), ("torch-compile", True), ("trt", True)],
)
def test_the_clock_of_the_gpu_counts_if_anything_that_is_measured_runs_there(
    shared_bundle: Callable[[str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
    one_line: Callable[[], str],
    against: str,
    on_gpu: bool,
) -> None:
    floating = dataclasses.replace(
        samples.BOARD, governor="schedutil", min_mhz=408.0, max_mhz=2201.0, device_clocks={"gpu": "a, 306 to 918 MHz"}
    )
    monkeypatch.setattr("edgevit.latency.environment.Environment.capture", lambda: floating)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert status("latency", shared_bundle("ort").path, "--against", against, "--require-locked") == 7
    assert ("clock of gpu (a, 306 to 918 MHz)" in one_line()) is on_gpu
