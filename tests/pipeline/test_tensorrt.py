"""TensorRT on a machine without a GPU: bundles name the commands still to run; TensorRT-RTX builds real engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.errors import BundleError, ExportError, MissingError, PrecisionError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.runtimes.base import BuildOptions
from tests.helpers.modules import InPlace
from tests.helpers.skips import needs_no_tensorrt, needs_rtx


class Scale(nn.Module):
    """Multiplies its input by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@needs_no_tensorrt
def test_trt_writes_the_bundle_without_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    assert main(["export", "shiftvit_cifar10", "--fmt", "trt", "--dynamic-batch", "1:2:4", "--out", out]) == 3
    printed = capsys.readouterr()
    path = tmp_path / "shiftvit_cifar10-fp32-trt"
    assert printed.out.strip().splitlines()[-1] == f"edgevit build {path}"
    last = printed.err.strip().splitlines()[-1]
    assert "has no engine yet" in last
    assert "pip install" not in last  # it would download gigabytes and still build no engine
    assert {file.name for file in path.iterdir()} == {"manifest.json", "model.onnx", "reference.npz", "classes.txt"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["runtime"]["engine_files"] == []
    assert manifest["precision"]["found"] is None
    trtexec = manifest["build"]["notes"][1]
    assert trtexec.startswith("trtexec --onnx=")
    assert "--stronglyTyped" in trtexec
    assert "--optShapes=images:2x3x32x32" in trtexec
    assert any(line.endswith(trtexec) for line in printed.out.splitlines())  # unwrapped, ready to paste
    with pytest.raises(MissingError, match="holds no engine yet"):
        edgevit.load(path)
    for command in ("verify", "build", "latency"):
        assert main([command, str(path)]) == 3


@pytest.mark.parametrize(
    "line", ["raise ImportError('libnvinfer.so.10: cannot open shared object file')", "__version__ = '8.5.2.2'"]
)
def test_a_broken_tensorrt_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "tensorrt.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]  # imported again, and removed after the test
    export = ["export", "shiftvit_cifar10", "--fmt", "trt", "--no-verify", "--out", str(tmp_path)]
    assert main(export) == 3
    manifest = json.loads((tmp_path / "shiftvit_cifar10-fp32-trt" / "manifest.json").read_text())
    assert manifest["runtime"]["version"] is None
    assert manifest["build"]["missing"]


@pytest.mark.large
@needs_no_tensorrt
def test_the_python_api_takes_targets(tmp_path: Path) -> None:
    """The versions differ in Gelu, an operator since opset 20."""
    for version, opset in (("8.6", 17), ("10.3", 20)):
        bundle = edgevit.export("shiftvit_cifar10", fmt="trt", trt_version=version, out=tmp_path, verify=False)
        assert bundle.manifest.to_json()["exporter"]["opset"] == opset
    with pytest.raises(UsageError, match="no compute capability 87 for ahead-of-time builds"):
        edgevit.export("shiftvit_cifar10", fmt="trt-rtx", sm=[87], out=tmp_path)


def test_a_graph_that_the_parser_rejects_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot run on TensorRT 10\.3: /ScatterND.*torch\.cat"):
        edgevit.export(InPlace(), example_input=torch.rand(1, 4), fmt="trt", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_trt_rtx_builds_an_engine_without_a_gpu(tmp_path: Path) -> None:
    out = str(tmp_path)
    assert main(["export", "shiftvit_cifar10", "--fmt", "trt-rtx", "--sm", "86,89", "--out", out]) == 0
    bundle = Bundle.open(tmp_path / "shiftvit_cifar10-fp32-trt-rtx")
    assert bundle.engine_path is not None
    assert bundle.engine_path.read_bytes()[:4] == b"vtrt"
    assert bundle.options.compute_capabilities == (86, 89)
    assert bundle.manifest.to_json()["precision"]["found"] == "fp32"  # read from the kernel list of the compiler
    bundle.engine_path.write_bytes(bundle.engine_path.read_bytes()[:-1])
    with pytest.raises(BundleError):
        edgevit.load(bundle)


@needs_rtx
def test_only_the_trt_rtx_bundle_records_sm(tmp_path: Path) -> None:
    """A model small enough that both engines build in seconds."""
    (tmp_path / "small.py").write_text(
        "from torch import nn\n\n\ndef small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))\n"
    )
    model, out = f"{tmp_path / 'small.py'}:small", tmp_path / "out"
    assert main(["export", model, "--fmt", "ort,trt-rtx", "--sm", "86", "--no-latency", "--out", str(out)]) == 0
    manifests = {path.name: json.loads((path / "manifest.json").read_text()) for path in out.iterdir()}
    named = {name: manifest["build"]["compute_capabilities"] for name, manifest in manifests.items()}
    assert named == {"small_small-fp32-ort": None, "small_small-fp32-trt-rtx": [86]}
    assert Bundle.open(out / "small_small-fp32-ort").options.compute_capabilities is None


def test_an_unknown_compute_capability_is_rejected() -> None:
    with pytest.raises(UsageError, match="compute capabilit"):
        BuildOptions(compute_capabilities=(12,))


def test_the_graph_is_fp16_and_checked_at_its_tolerance(tmp_path: Path) -> None:

    bundle = edgevit.export("shiftvit_cifar10", fmt="onnx", precision="fp16", out=tmp_path)
    assert bundle.path.name == "shiftvit_cifar10-fp16-onnx"
    graph = OnnxGraph.load(bundle.model_path)
    assert graph.operators["Cast"] == 2  # at the input and the output
    assert [spec.dtype for spec in (*graph.inputs, *graph.outputs)] == ["float32", "float32"]
    weights = [value for value in graph.model.graph.initializers.values() if value.name == "head.weight"]
    assert all(str(value.dtype) == "FLOAT16" for value in weights)
    stages = {result["stage"]: result["precision"] for result in bundle.manifest.to_json()["parity"]["results"]}
    assert stages["onnx: optimized ONNX"] == "fp32"
    assert stages["onnx: fp16 ONNX"] == "fp16"
    assert bundle.manifest.to_json()["typing"]["kept"] == []
    assert bundle.manifest.quantized_fraction == 1


def test_a_graph_beyond_the_range_of_fp16_is_status_9(tmp_path: Path) -> None:
    model = nn.Sequential(Scale(1e6), nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(
        PrecisionError, match=r"no layer can run in fp16: .* the first layer is 1/\w+ \(.*ends at 65504"
    ):
        edgevit.export(model, example_input=torch.rand(1, 8), fmt="trt", precision="fp16", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_fp16_runs_as_fp16(tmp_path: Path) -> None:
    bundle = edgevit.export("shiftvit_cifar10", fmt="trt-rtx", precision="fp16", out=tmp_path)
    assert set(bundle.manifest.to_json()["precision"]["layers"]) == {"fp16"}
