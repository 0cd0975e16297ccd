"""`edgevit optimize` writes a file for a runtime after comparing its outputs with those of the original file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgevit.export import onnx_writer, passes
from edgevit.export.graph import OnnxGraph
from tests.helpers.cli import last_line, status
from tests.helpers.graphs import HEADER, batchnorm_parameters, broken_optimize, noise, parse
from tests.helpers.quantization import load

CONV_BATCHNORM = f"""{HEADER} g (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y) {{
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    y = BatchNormalization (a, scale, bias, mean, var)
}}"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A convolution with a batch normalization, which a pass folds."""
    parse(CONV_BATCHNORM, w=noise(4, 3, 3, 3), **batchnorm_parameters(4)).save(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("fmt", ["ort", "openvino", "trt"])
def test_a_file_becomes_a_smaller_one_with_equal_outputs(
    fmt: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("optimize", file, "--fmt", fmt, "--json", file.with_name("report.json")) == 0
    path = file.with_name(f"net.{fmt}.onnx")
    assert f"{path}: 1 nodes of 2, opset " in capsys.readouterr().out.replace("\n", "")
    feeds = {"x": noise(2, 3, 8, 8, seed=5)}
    optimized = OnnxGraph.load(path)
    assert optimized.operators == {"Conv": 1}
    assert np.allclose(load(optimized)(feeds)["y"], load(OnnxGraph.load(file))(feeds)["y"], atol=1e-5)
    report = json.loads(file.with_name("report.json").read_text())
    assert (report["nodes_before"], report["nodes_after"], report["parity"]["passed"]) == (2, 1, True)


def test_a_file_that_would_compute_something_else_is_not_written(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(passes, "optimize", broken_optimize(factor=1.01))
    assert status("optimize", file, "--fmt", "ort") == 6
    assert "optimized file" in last_line(capsys)
    assert not file.with_name("net.ort.onnx").exists()


def test_a_file_that_the_runtime_would_refuse_is_not_written(tmp_path: Path, one_line: Callable[[], str]) -> None:
    parse(f"{HEADER} g (float[batch, 4, 4] x) => (float[batch] y) {{ y = Det (x) }}").save(tmp_path / "net.onnx")
    assert status("optimize", tmp_path / "net.onnx", "--fmt", "trt") == 4
    assert "the graph cannot run on TensorRT" in one_line()
    assert not (tmp_path / "net.trt.onnx").exists()


def test_a_file_that_cannot_be_written_whole_leaves_the_older_one(
    file: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[[], str]
) -> None:
    def full_disk(_skeleton: ir.Model, _weights: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    older = file.with_name("net.ort.onnx")
    older.write_bytes(b"older")
    monkeypatch.setattr(onnx_writer, "write_model", full_disk)
    assert status("optimize", file, "--fmt", "ort") == 4
    assert "net.ort.onnx: No space left on device" in one_line()
    assert older.read_bytes() == b"older"
    assert sorted(path.name for path in file.parent.iterdir()) == ["net.onnx", "net.ort.onnx"]


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        (["--fmt", "ort", "--out", "net.onnx"], 2, "--out net.onnx is the file itself"),
        (["--fmt", "ort", "--out", "nowhere/net.onnx"], 4, "cannot write nowhere/net.onnx"),
        (["--fmt", "ort", "--opset", "9"], 4, "opset 9 is not supported"),
        (["--fmt", "orc"], 2, "unknown format 'orc'"),
        (["--fmt", "ort", "--input-shape", "z=1,2"], 2, "unknown input 'z'"),
    ],
)
def test_a_wrong_request_is_one_line(
    options: list[str],
    expected: int,
    words: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_line: Callable[[], str],
) -> None:
    monkeypatch.chdir(file.parent)
    assert status("optimize", "net.onnx", *options) == expected
    assert words in one_line()


def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path, one_line: Callable[[], str]) -> None:
    assert status("optimize", tmp_path / "none.onnx", "--fmt", "ort") == 2
    assert "none.onnx" in one_line()
    (tmp_path / "bad.onnx").write_bytes(b"no onnx")
    assert status("optimize", tmp_path / "bad.onnx", "--fmt", "ort") == 2
    assert "bad.onnx" in one_line()
