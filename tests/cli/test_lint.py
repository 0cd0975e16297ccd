"""`edgevit lint` and `edgevit plan`: damaged files are rejected, weights next to the model are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import edgevit
from edgevit.cli.main import main
from tests.helpers.modules import InPlace
from tests.helpers.skips import needs_rtx


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


def test_lint_errors_are_status_1(tmp_path: Path) -> None:
    bundle = edgevit.export(InPlace(), example_input=torch.rand(1, 4), fmt="onnx", out=tmp_path)
    assert main(["lint", str(bundle.model_path), "--target", "trt"]) == 1
    assert main(["lint", str(bundle.path), "--target", "trt"]) == 1


X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")


def onnx_file(path: Path, *nodes: onnx.NodeProto, weights: Sequence[onnx.TensorProto] = (), opset: int = 17) -> Path:
    """Save a model from x to y."""
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
def test_a_damaged_file_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, target: str) -> None:
    make, words = BROKEN[case]
    make(tmp_path / "m.onnx")
    assert main(["lint", str(tmp_path / "m.onnx"), "--target", target]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_external_weights_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node, weight = helper.make_node("Mul", ["x", "w"], ["y"]), numpy_helper.from_array(np.full(4, 1e6, np.float32), "w")
    model = onnx.load(onnx_file(tmp_path / "m.onnx", node, weights=[weight]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert main(["lint", str(tmp_path / "m.onnx"), "--target", "trt"]) == 0
    assert "a weight of 1e+06" in capsys.readouterr().out


@pytest.mark.parametrize("other", [False, True])
def test_a_missing_file_is_rejected_before_the_compiler_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: bool
) -> None:
    here = str(onnx_file(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"])))
    gone = str(tmp_path / "gone.onnx")
    assert main(["plan", *([here, "--compare", gone] if other else [gone])]) == 2
    assert f"no ONNX file and no bundle at {gone}" in capsys.readouterr().err
