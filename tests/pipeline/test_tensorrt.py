"""TensorRT on a machine without a GPU: bundles that say what they lack, and real engines of TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.errors import BundleError, ExportError, MissingError, UsageError
from edgevit.pipeline.config import ExportConfig
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.runtime import TensorRt

needs_no_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed: this machine may build engines"
)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (no part of the everyday set): pip install 'edgevit[trt-rtx]'",
)


@needs_no_tensorrt
def test_trt_makes_the_bundle_but_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    assert main(["export", "shiftvit_cifar10", "--fmt", "trt", "--dynamic-batch", "1:2:4", "--out", out]) == 3
    printed = capsys.readouterr()
    path = tmp_path / "shiftvit_cifar10-fp32-trt"
    assert printed.out.strip().splitlines()[-1] == f"edgevit build {path}"
    last = printed.err.strip().splitlines()[-1]
    assert "has no engine yet" in last
    assert "pip install" not in last  # which would bring gigabytes, and still no engine
    assert {file.name for file in path.iterdir()} == {"manifest.json", "model.onnx", "reference.npz", "classes.txt"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["runtime"]["engine_files"] == []
    assert manifest["precision"]["found"] is None
    trtexec = manifest["build"]["notes"][1]
    assert trtexec.startswith("trtexec --onnx=")
    assert "--stronglyTyped" in trtexec
    assert "--optShapes=images:2x3x32x32" in trtexec
    assert any(line.endswith(trtexec) for line in printed.out.splitlines())  # whole, to be pasted
    with pytest.raises(MissingError, match="holds no engine yet"):
        edgevit.load(path)
    for command in ("verify", "build", "latency"):
        assert main([command, str(path)]) == 3


@pytest.mark.parametrize(
    "line", ["raise ImportError('libnvinfer.so.10: cannot open shared object file')", "__version__ = '8.5.2.2'"]
)
def test_a_tensorrt_that_does_not_work_here_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "tensorrt.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]  # imported anew, and forgotten after the test
    export = ["export", "shiftvit_cifar10", "--fmt", "trt", "--no-verify", "--out", str(tmp_path)]
    assert main(export) == 3
    manifest = json.loads((tmp_path / "shiftvit_cifar10-fp32-trt" / "manifest.json").read_text())
    assert manifest["runtime"]["version"] is None
    assert manifest["build"]["missing"]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5", "JetPack 5"),
        ("9.3", "not with 9.3"),
        ("7.2", "unknown TensorRT version"),
        ("banana", "unknown TensorRT version"),
    ],
)
def test_a_version_that_no_bundle_is_made_for_is_refused_at_the_door(version: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):  # status 3 is that of a bundle which was made
        ExportConfig(formats=("trt",), trt_version=version)


@needs_no_tensorrt
def test_python_names_the_targets_too(tmp_path: Path) -> None:
    """What differs between the two versions is Gelu, an operator from opset 20 on."""
    for version, opset in (("8.6", 17), ("10.3", 20)):
        bundle = edgevit.export("shiftvit_cifar10", fmt="trt", trt_version=version, out=tmp_path, verify=False)
        assert bundle.manifest.to_json()["exporter"]["opset"] == opset
    with pytest.raises(UsageError, match="no compute capability 87 for ahead-of-time builds"):
        edgevit.export("shiftvit_cifar10", fmt="trt-rtx", sm=[87], out=tmp_path)


def test_a_version_of_tensorrt_is_for_tensorrt() -> None:
    with pytest.raises(UsageError, match="--trt-version requires --fmt trt"):
        ExportConfig(formats=("ort", "trt-rtx"), trt_version="10.3")


@pytest.mark.parametrize(
    ("here", "gpu", "asked", "target", "opset"),
    [
        ("8.6.2", True, None, "8.6", 17),
        ("10.16.2.10", True, None, "10.16", 20),
        ("8.6.2", True, "10.3", "10.3", 20),
        ("11.4.0", False, None, "10.3", 20),  # a workstation, which builds nothing
    ],
)
def test_the_graph_is_for_the_tensorrt_that_builds_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, gpu: bool, asked: str | None, target: str, opset: int
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"__version__ = {here!r}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]
    monkeypatch.setattr(TensorRt, "version", lambda _runtime: here)
    monkeypatch.setattr(cuda, "has_gpu", lambda: gpu)
    recipe = ExportConfig(formats=("ort", "trt"), trt_version=asked).for_machine()
    assert recipe.target_version == target
    assert (recipe.opset_for("trt") or 20) == opset


class InPlace(nn.Module):
    """A sliced assignment: ScatterND in the data path."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        out[:, 1:] = x[:, :-1]
        return out * 2


def test_what_the_target_cannot_parse_is_refused_before_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot run on TensorRT 10\.3: /ScatterND.*torch\.cat"):
        edgevit.export(InPlace(), example_input=torch.rand(1, 4), fmt="trt", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sm_is_for_trt_rtx_alone(tmp_path: Path) -> None:
    assert main(["export", "shiftvit_cifar10", "--fmt", "ort", "--sm", "86", "--out", str(tmp_path)]) == 2
    assert main(["export", "shiftvit_cifar10", "--fmt", "trt", "--trt-version", "8.5", "--out", str(tmp_path)]) != 0
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_trt_rtx_makes_a_real_engine_without_a_gpu(tmp_path: Path) -> None:
    out = str(tmp_path)
    assert main(["export", "shiftvit_cifar10", "--fmt", "trt-rtx", "--sm", "86,89", "--out", out]) == 0
    bundle = Bundle.open(tmp_path / "shiftvit_cifar10-fp32-trt-rtx")
    assert bundle.engine_path is not None
    assert bundle.engine_path.read_bytes()[:4] == b"vtrt"
    assert bundle.options.compute_capabilities == (86, 89)
    assert bundle.manifest.to_json()["precision"]["found"] == "fp32"  # as the compiler listed its kernels
    bundle.engine_path.write_bytes(bundle.engine_path.read_bytes()[:-1])
    with pytest.raises(BundleError):
        edgevit.load(bundle)


@needs_rtx
def test_only_the_bundle_for_trt_rtx_names_the_gpus_of_sm(tmp_path: Path) -> None:
    """A model of the user's own, so small that both engines take seconds."""
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


@needs_rtx
def test_plan_and_lint_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = edgevit.export("shiftvit_cifar10", fmt="onnx", out=tmp_path)
    assert main(["plan", str(bundle.path), "--json", "-"]) == 0
    kernels = json.loads(capsys.readouterr().out)["totals"]["kernels"]
    assert kernels <= 45
    assert main(["plan", str(bundle.path), "--compare", str(bundle.path), "--json", "-"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["totals"]["kernels"] == [kernels, kernels]
    assert compared["modules"] == {}
    assert main(["lint", str(bundle.model_path), "--target", "trt:10.3"]) == 0
    assert main(["lint", str(bundle.model_path), "--target", "tensorflow"]) == 2


def test_lint_says_no_with_status_1(tmp_path: Path) -> None:
    bundle = edgevit.export(InPlace(), example_input=torch.rand(1, 4), fmt="onnx", out=tmp_path)
    assert main(["lint", str(bundle.model_path), "--target", "trt"]) == 1
    assert main(["lint", str(bundle.path), "--target", "trt"]) == 1


X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")


def onnx_file(path: Path, *nodes: onnx.NodeProto, weights: Sequence[onnx.TensorProto] = (), opset: int = 17) -> Path:
    """A model from x to y."""
    graph = helper.make_graph(list(nodes), "graph", [X], [Y], list(weights))
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())
    return path


def _cut(path: Path) -> None:
    onnx_file(path, helper.make_node("Relu", ["x"], ["y"]))
    path.write_bytes(path.read_bytes()[:-3])


def _without_its_weights(path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], bytes(16), raw=True)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="gone.bin")
    onnx_file(path, helper.make_node("Add", ["x", "w"], ["y"]), weights=[weight])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda _path: None, "no ONNX file and no bundle at"),
    "empty": (lambda path: path.write_bytes(b""), "it contains no graph"),
    "garbage": (lambda path: path.write_bytes(b"garbage"), "is damaged"),
    "cut off": (_cut, "is damaged"),
    "a folder": (lambda path: path.mkdir(), "is not a bundle"),
    "dangling": (lambda path: onnx_file(path, helper.make_node("Add", ["x", "lost"], ["y"])), "reads 'lost', which"),
    "without an input": (lambda path: onnx_file(path, helper.make_node("Sub", ["x"], ["y"])), "Sub has 1 inputs, but"),
    "without its weights": (_without_its_weights, "the file of weight 'w' is missing"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("target", ["trt", "openvino", "ort"])
def test_a_file_that_is_no_whole_model_is_refused_and_not_found_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, target: str
) -> None:
    make, words = BROKEN[case]
    make(tmp_path / "m.onnx")
    assert main(["lint", str(tmp_path / "m.onnx"), "--target", target]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_weights_in_a_file_beside_the_model_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node, weight = helper.make_node("Mul", ["x", "w"], ["y"]), numpy_helper.from_array(np.full(4, 1e6, np.float32), "w")
    model = onnx.load(onnx_file(tmp_path / "m.onnx", node, weights=[weight]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert main(["lint", str(tmp_path / "m.onnx"), "--target", "trt"]) == 0
    assert "a weight of 1e+06" in capsys.readouterr().out


@pytest.mark.parametrize("other", [False, True])
def test_a_plan_of_a_file_that_is_not_there_is_refused_before_the_compiler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: bool
) -> None:
    here = str(onnx_file(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"])))
    gone = str(tmp_path / "gone.onnx")
    assert main(["plan", *([here, "--compare", gone] if other else [gone])]) == 2
    assert f"no ONNX file and no bundle at {gone}" in capsys.readouterr().err


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(UsageError, match="compute capabilit"):
        edgevit.runtimes.base.BuildOptions(compute_capabilities=(12,))


def test_fp16_is_typed_in_the_graph_and_judged(tmp_path: Path) -> None:
    from edgevit.export.graph import OnnxGraph

    bundle = edgevit.export("shiftvit_cifar10", fmt="onnx", precision="fp16", out=tmp_path)
    assert bundle.path.name == "shiftvit_cifar10-fp16-onnx"
    graph = OnnxGraph.load(bundle.model_path)
    assert graph.operators["Cast"] == 2  # at the ends alone
    assert [spec.dtype for spec in (*graph.inputs, *graph.outputs)] == ["float32", "float32"]
    weights = [value for value in graph.model.graph.initializers.values() if value.name == "head.weight"]
    assert all(str(value.dtype) == "FLOAT16" for value in weights)
    stages = {result["stage"]: result["precision"] for result in bundle.manifest.to_json()["parity"]["results"]}
    assert stages["onnx: optimized ONNX"] == "fp32"
    assert stages["onnx: fp16 ONNX"] == "fp16"
    assert bundle.manifest.to_json()["typing"]["kept"] == []


@needs_rtx
def test_fp16_runs_as_fp16(tmp_path: Path) -> None:
    bundle = edgevit.export("shiftvit_cifar10", fmt="trt-rtx", precision="fp16", out=tmp_path)
    assert set(bundle.manifest.to_json()["precision"]["layers"]) == {"fp16"}
