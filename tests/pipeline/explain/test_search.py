"""The explanation of a failed parity check names the module that is wrong, and saves a part that fails by itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import edgevit
from edgevit.errors import ParityError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import int64_initializer
from edgevit.export.tensor_parts import KeptRow, kept_rows
from edgevit.pipeline.explain.explanation import Explanation
from edgevit.pipeline.explain.search import Failure, explain_failure
from edgevit.pipeline.explain.stages import Stage
from edgevit.runtimes.base import Artifact, BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntime
from edgevit.runtimes.parity import compare
from edgevit.types import Array
from tests.helpers.cli import status
from tests.tools.faults import Plant, change_weight, plant
from tests.tools.plants import Exported, explain, is_named

PLANTS = (
    Plant("a transposed weight", "blocks.1.attn.proj/MatMul"),
    Plant("a dropped residual", "blocks.0/Add"),
    Plant("GELU by tanh", "blocks.1.act/Gelu"),
    Plant("epsilon off by ten", "blocks.1.norm/LayerNormalization"),
    Plant("align_corners flipped", "stem/Resize"),
    Plant("nearest for bilinear", "stem/Resize"),
    Plant("a weight 1 % too large", "stem.conv/Conv"),
    Plant("a weight 1 % too large", "stem.mix/Conv"),
    Plant("a sign", "blocks.0.attn.qkv/MatMul"),
    Plant("another axis of softmax", "blocks.1.attn/Softmax"),
)


@pytest.mark.parametrize("planted", PLANTS, ids=lambda planted: f"{planted.fault} in {planted.module}")
def test_the_module_of_a_planted_fault_is_named(network: Exported, planted: Plant, tmp_path: Path) -> None:
    found = explain(network, plant(network.graph, planted), folder=tmp_path)
    if planted.fault == "epsilon off by ten":  # below the tolerance: docs/parity.md
        assert found is None
        return
    assert found is not None and is_named(planted, found), found and list(found.lines())
    assert found.finding is not None and found.finding.explained > 0.9
    assert found.finding.inputs.max_of_std < 1e-5 < found.finding.own.max_of_std
    assert found.reproducer is not None and found.reproducer.fails


def test_faults_of_the_last_block_are_planted_where_one_row_is_computed(network: Exported) -> None:
    rows = [row for name, row in kept_rows(network.graph).items() if not name.startswith("val_")]
    assert len(rows) > 5 and set(rows) == {KeptRow(1, 0)}


def test_a_wrong_row_is_named(network: Exported, tmp_path: Path) -> None:
    def select_the_next(model: ir.Model) -> None:
        (node,) = [each for each in model.graph if each.name == "blocks.1/Add_row"]
        node.replace_input_with(1, int64_initializer(model.graph, "next", [1]))

    found = explain(network, network.graph.apply("fault", select_the_next), folder=tmp_path)
    assert found is not None and found.module == "blocks.1"
    assert found.reproducer is not None and found.reproducer.fails


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_layer_that_is_computed_in_parts_is_named(wide_network: Exported, part: int, tmp_path: Path) -> None:
    planted = Plant("a sign", f"blocks.0.attn.qkv/MatMul_{part}")
    found = explain(wide_network, plant(wide_network.graph, planted), folder=tmp_path)
    assert found is not None and found.module == "blocks.0.attn.qkv"
    assert found.finding is not None and found.finding.explained > 0.9
    assert found.reproducer is not None and found.reproducer.fails
    assert len(onnx.load(found.reproducer.path).graph.output) == 3


def test_the_pasted_command_fails_with_the_status_of_parity(network: Exported, tmp_path: Path) -> None:
    planted = Plant("a sign", "blocks.0.attn.qkv/MatMul")
    found = explain(network, plant(network.graph, planted), folder=tmp_path / "my files")
    assert found is not None and found.reproducer is not None
    assert f"reproduce: {found.reproducer.command}" in list(found.lines())[-1]
    program, *words = shlex.split(found.reproducer.command)
    assert (program, status(*words)) == ("edgevit", 6)
    assert len(onnx.load(found.reproducer.path).graph.node) == 2  # the matmul and its bias


def test_a_part_that_is_right_passes(network: Exported, tmp_path: Path) -> None:
    found = explain(network, plant(network.graph, PLANTS[0]), folder=tmp_path)
    assert found is not None and found.reproducer is not None
    model = onnx.load(found.reproducer.path)
    (weight,) = [each for each in model.graph.initializer if len(each.dims) == 2]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).T.copy(), weight.name))
    onnx.save(model, found.reproducer.path)
    assert status(*shlex.split(found.reproducer.command)[1:]) == 0


def test_the_first_of_several_wrong_modules_is_named(network: Exported, tmp_path: Path) -> None:
    wrong = plant(plant(network.graph, Plant("a sign", "blocks.1.fc/MatMul")), Plant("a sign", "blocks.0.fc/MatMul"))
    found = explain(network, wrong, folder=tmp_path)
    assert found is not None and found.module == "blocks.0.fc"


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("module", ["blocks.0.fc", "blocks.1.attn.proj", "blocks.1.fc", "head"])
def test_a_module_that_outputs_infinity_explains_all_of_the_error(
    module: str, value: float, network: Exported, tmp_path: Path
) -> None:
    """It explained nan% of it."""
    planted = Plant("a value that is not finite", f"{module}/MatMul")

    def overflow(weight: Array) -> Array:
        weight = weight.copy()
        weight[0, 0] = value
        return weight

    found = explain(network, plant(network.graph, planted, change_weight(overflow)), folder=tmp_path)
    assert found is not None and found.finding is not None
    assert found.module == module
    assert found.finding.explained == 1
    assert "it explains 100% of the error of the model's outputs" in "\n".join(found.lines())


class Mixing(nn.Module):
    """Computes over the batch."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = nn.functional.batch_norm(x, None, None, training=True) if self.norm else x - 0.5 * x.mean(0)
        return x.relu().mean((2, 3))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("batch", [{"batch": 3}, {"dynamic_batch": (1, 2, 4)}])
def test_a_module_that_mixes_the_images_of_a_batch_is_blamed_itself(
    norm: bool, batch: dict[str, Any], tmp_path: Path
) -> None:
    """No module differed by itself, since PyTorch does the same."""
    example = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ParityError, match="in PyTorch too, the result for an image depends on the others") as caught:
        edgevit.export(Mixing(norm=norm), fmt="ort", example_input=example, latency=False, out=tmp_path, **batch)
    assert caught.value.exit_status == 6
    assert "no module differs" not in str(caught.value)


def test_nothing_is_named_after_the_time_is_up(network: Exported, tmp_path: Path) -> None:
    failure = failure_of(network, plant(network.graph, PLANTS[0]))
    found = explain_failure(network.model, failure, folder=tmp_path, limit_s=0)
    assert (found.module, found.sentence) == (None, "no module was found in the time")


def failure_of(network: Exported, graph: OnnxGraph, fmt: str = "onnx") -> Failure:
    stage = Stage(name="x", fmt=fmt, precision="fp32", graph=graph, options=BuildOptions())
    with stage.open(stage.graph) as run:
        report = compare("x", run, network.references, precision="fp32")
    result = next(result for result in report.results if not result.passed)
    reference = next(each for each in network.references if each.kind == result.kind)
    return Failure(stage=stage, result=result, reference=reference)


class Fusing(OnnxRuntime):
    """A runtime with a wrong fusion of Add and Gelu, which needs the sum for nothing else."""

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        proto = onnx.load(model)
        graph = proto.graph
        sums = {node.output[0] for node in graph.node if node.op_type == "Add"} - {each.name for each in graph.output}
        for node in graph.node:
            if node.op_type == "Gelu" and node.input[0] in sums and node.name.startswith("blocks.1"):
                node.op_type = "Sigmoid"
                del node.attribute[:]
        onnx.save(proto, model)
        return super().build(model, folder, options)


def test_a_failure_that_vanishes_with_inner_outputs_is_found_by_cuts(
    network: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.runtimes.onnxruntime.OnnxRuntime", Fusing)
    failure = failure_of(network, network.graph, "ort")
    found = explain_failure(network.model, failure, folder=tmp_path)
    assert found.segment is not None and found.reproducer is not None
    assert found.segment.operators == ("blocks.1.fc/Add", "blocks.1.act/Gelu")
    assert (found.module, found.reproducer.fails) == ("blocks.1", True)
    assert found.segment.builds < 4 * np.log2(network.graph.node_count)


class Coarse(nn.Module):
    """Adds and subtracts a large number, which costs fp16 all digits behind the point."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1500.5) - 1500.5


def test_fp16_proposes_the_module_to_keep_in_float_and_that_helps(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), Coarse(), nn.Flatten(), nn.Linear(16, 5))
    example = torch.rand(1, 3, 8, 8)
    with pytest.raises(ParityError, match=r"the module that costs the most accuracy is 2 \(Coarse\)") as caught:
        edgevit.export(module, precision="fp16", example_input=example, out=tmp_path, name="net")
    explanation = caught.value.explanation
    assert isinstance(explanation, Explanation) and explanation.keep_float == ("2",)
    kept = explanation.keep_float
    bundle = edgevit.export(module, precision="fp16", example_input=example, out=tmp_path, name="net", keep_float=kept)
    assert bundle.name == "net-fp16-onnx"


def test_a_problem_of_the_explanation_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: Mapping[str, object]) -> Explanation:
        raise RuntimeError("cannot record")

    monkeypatch.setattr("edgevit.pipeline.explain.exports.explain_failure", fail)
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), Coarse(), nn.Flatten())
    with pytest.raises(ParityError, match="was not found: RuntimeError: cannot record") as caught:
        edgevit.export(module, precision="fp16", example_input=torch.rand(1, 3, 8, 8), out=tmp_path)
    assert caught.value.exit_status == 6
    assert isinstance(caught.value.explanation, Explanation) and caught.value.explanation.module is None
