"""ExportConfig: contradictions are rejected, and TensorRT's version decides the opset."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevit.cli.main import main
from edgevit.errors import UsageError
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.run import target_this_machine
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.runtime import TensorRt
from tests.helpers.cli import status


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "give a folder of a hundred or more with --calib DIR"),
        (["--calib", "DIR"], "--calib requires --precision fp16 or int8"),
        (["--eval", "DIR"], "--eval requires --precision fp16, bf16 or int8"),
        (["--max-drop", "1%"], "--max-drop requires --precision"),
        (["--int8", "--calib", "DIR", "--max-drop", "100%"], "--max-drop must be at least 0% and below 100%, got 100%"),
        (["--int8", "--calib", "DIR", "--max-drop", "-1%"], "--max-drop"),
        (["--int8", "--calib", "DIR", "--max-drop", "nan"], "--max-drop must be at least 0% and below 100%, got nan%"),
        (["--int8", "--calib", "DIR", "--max-drop", "much"], "not a percentage"),
        (["--fp16", "--max-drop", "0%"], "needs labeled images; add --eval DIR"),
        (["--bf16", "--max-drop", "0%"], "--max-drop with bf16 needs labeled images; add --eval DIR"),
        (["--bf16", "--calib", "DIR"], "--calib requires --precision fp16 or int8; leave it out"),
        (["--bf16", "--keep-float", "stages.0"], "--keep-float requires --precision fp16 or int8; leave it out"),
        (["--int8", "--fp16", "--calib", "DIR"], "fp16 and int8 were both requested; choose one precision"),
        (["--int8-range", "full"], "--int8-range requires --precision int8"),
        (["--int8", "--calib", "DIR", "--int8-range", "9"], "--int8-range"),
    ],
)
def test_contradicting_options_are_status_2(
    options: list[str], message: str, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [str(views) if word == "DIR" else word for word in options]
    assert status("export", "shiftvit_cifar10", "--fmt", "ort", "--out", tmp_path, *own) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5", "JetPack 5"),
        ("9.3", "not 9.3"),
        ("7.2", "unknown TensorRT version"),
        ("12.0", r"unknown TensorRT version '12\.0': give 8\.6, 10\.x or 11\.x, such as 10"),
        ("banana", "unknown TensorRT version"),
    ],
)
def test_an_unsupported_tensorrt_version_is_rejected_first(version: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):  # status 3 means that a bundle was written
        ExportConfig(formats=("trt",), trt_version=version)


def test_trt_version_requires_trt() -> None:
    with pytest.raises(UsageError, match="--trt-version requires --fmt trt"):
        ExportConfig(formats=("ort", "trt-rtx"), trt_version="10.3")


@pytest.mark.parametrize(
    ("here", "gpu", "requested", "target", "opset"),
    [
        ("8.6.2", True, None, "8.6", 17),
        ("10.16.2.10", True, None, "10.16", 20),
        ("8.6.2", True, "10.3", "10.3", 20),
        ("11.4.0", False, None, "10.3", 20),  # a workstation without a GPU builds nothing
    ],
)
def test_the_graph_targets_the_installed_tensorrt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: str,
    gpu: bool,
    requested: str | None,
    target: str,
    opset: int,
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"__version__ = {here!r}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]
    monkeypatch.setattr(TensorRt, "version", lambda _runtime: here)
    monkeypatch.setattr(cuda, "has_gpu", lambda: gpu)
    config = target_this_machine(ExportConfig(formats=("ort", "trt"), trt_version=requested))
    assert config.target_version == target
    assert (config.opset_for("trt") or 20) == opset


def test_sm_requires_trt_rtx(tmp_path: Path) -> None:
    assert main(["export", "shiftvit_cifar10", "--fmt", "ort", "--sm", "86", "--out", str(tmp_path)]) == 2
    assert main(["export", "shiftvit_cifar10", "--fmt", "trt", "--trt-version", "8.5", "--out", str(tmp_path)]) != 0
    assert list(tmp_path.iterdir()) == []
