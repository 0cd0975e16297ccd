"""`edgevit build`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.latency_file import bundle_details
from edgevit.errors import MeasureError
from edgevit.latency.report import LatencyReport
from tests.helpers.bundles import damage
from tests.helpers.cli import last_line, status
from tests.helpers.file_limits import files_up_to


def test_build_makes_an_engine_from_the_bundles_onnx_file(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(shared_bundle("onnx").path, tmp_path / "shiftvit_cifar10-fp32-onnx")
    assert status("build", source, "--fmt", "openvino") == 0
    measured = json.loads((tmp_path / "shiftvit_cifar10-fp32-openvino" / "latency.json").read_text())
    built = Bundle.open(tmp_path / "shiftvit_cifar10-fp32-openvino")
    assert built.fmt == "openvino"
    assert (built.manifest.parity or {})["passed"] is True
    assert measured[0]["details"] == bundle_details(built, precision="fp32")
    assert [figures["name"] for figures in built.manifest.latency or ()] == ["openvino"]
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith(f"edgevit latency {built.path}")
    before = source.stat().st_ino
    assert status("build", source, "--no-latency") == 0  # for its own format it takes its place
    assert source.stat().st_ino != before
    assert len(list(tmp_path.iterdir())) == 2


def test_json_says_why_a_built_engine_was_not_measured(
    shared_bundle: Callable[[str], Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> tuple[LatencyReport, ...]:
        raise MeasureError("the clock stood still")

    monkeypatch.setattr("edgevit.bundles.build.measure", fail)
    source, out = shutil.copytree(shared_bundle("onnx").path, tmp_path / "shiftvit_cifar10-fp32-onnx"), tmp_path / "out"
    assert status("build", source, "--fmt", "ort", "--json", out) == 0
    assert "note: no latency: the clock stood still" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert (result["latency"], result["latency_problem"]) == ([], "the clock stood still")


@pytest.mark.parametrize("fmt", ["onnx", "openvino"])
def test_a_built_engine_has_no_accuracy_that_was_measured_on_another(
    fmt: str, shared_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    source = shutil.copytree(shared_bundle("onnx").path, tmp_path / "shiftvit_cifar10-fp32-onnx")
    damage(source, "verdict", {"judged": "the engine", "top1": 0.75, "images": 100, "time_ratio": 0.5})
    assert status("build", source, "--fmt", fmt, "--no-latency") == 0
    built = Bundle.open(tmp_path / f"shiftvit_cifar10-fp32-{fmt}")
    assert built.manifest.comparison is None
    assert built.manifest.latency is None


def test_a_full_disk_is_a_failed_export_and_leaves_the_bundle(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 would say that the request was wrong."""
    source = shutil.copytree(shared_bundle("onnx").path, tmp_path / "shiftvit_cifar10-fp32-onnx")
    before = source.stat().st_ino
    with files_up_to(10_000):
        assert status("build", source, "--no-latency") == 4
    line = last_line(capsys)
    assert "model.onnx: File too large; free some space" in line and "--out" not in line
    assert source.stat().st_ino == before and len(list(tmp_path.iterdir())) == 1
