"""`edgevit build`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from tests.helpers.cli import status


def test_build_makes_an_engine_from_the_bundles_onnx_file(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(shared_bundle("onnx").path, tmp_path / "shiftvit_cifar10-fp32-onnx")
    assert status("build", source, "--fmt", "openvino") == 0
    built = Bundle.open(tmp_path / "shiftvit_cifar10-fp32-openvino")
    assert built.fmt == "openvino"
    assert (built.manifest.parity or {})["passed"] is True
    assert status(*capsys.readouterr().out.strip().splitlines()[-1].split()[1:], "--duration", "0.1") == 0
    before = source.stat().st_ino
    assert status("build", source) == 0  # for its own format it takes its place
    assert source.stat().st_ino != before
    assert len(list(tmp_path.iterdir())) == 2
