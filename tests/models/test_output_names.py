"""Names of outputs: the keys of dicts, dataclasses and named tuples are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.export.capture import capture
from edgevit.models.loading import from_module
from edgevit.models.output_names import names_of_outputs
from edgevit.models.reference import register_dataclasses
from edgevit.pipeline import run as pipeline
from tests.helpers.formats import ON_CPU


@dataclass
class Detection:
    logits: torch.Tensor
    pred_boxes: torch.Tensor
    loss: torch.Tensor | None = None


class Pair(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


@dataclass
class Nested:
    both: Pair
    last: dict[str, torch.Tensor]


class Returns(nn.Module):
    """Returns the result of a function of its input."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1,), ["output"]),
        (lambda x: (x + 1, None, x + 2), ["output_0", "output_2"]),
        (lambda x: {"logits": x + 1}, ["logits"]),
        (lambda x: {"logits": x + 1, "aux": [x + 2, x + 3], "loss": None}, ["logits", "aux_0", "aux_1"]),
        (lambda x: (x + 1, {"k v/é": x + 2}), ["output_0", "output_1_k_v__"]),
        (lambda x: {0: x + 1, "a b": x + 2, "a/b": x + 3}, ["output_0", "a_b", "a_b_1"]),
        (lambda x: Detection(x + 1, x + 2), ["logits", "pred_boxes"]),
        (lambda x: Nested(Pair(x + 1, x + 2), {"a": x + 3}), ["both_mean", "both_spread", "last_a"]),
    ],
)
def test_an_output_is_named_by_its_place_in_the_result(
    function: Callable[[torch.Tensor], object], names: list[str]
) -> None:
    register_dataclasses(function(torch.zeros(2, 3)))
    program = torch.export.export(Returns(function), (torch.zeros(2, 3),))
    assert names_of_outputs(program) == names


def test_a_name_is_changed_if_an_input_has_it_and_no_other_tensor_keeps_it() -> None:
    """torch.onnx names the sum inside "add"."""
    graph = capture(Returns(lambda x: {"x": x * 3, "add": (x + 2) * 2}), (torch.zeros(2, 3),)).graph
    assert [spec.name for spec in graph.outputs] == ["x_output", "add"]
    tensors = [value.name for node in graph.model.graph.all_nodes() for value in node.outputs]
    assert len(set(tensors)) == len(tensors)


@dataclass
class Unknown:
    """Not registered with torch.export."""

    logits: torch.Tensor
    pred_boxes: torch.Tensor


def test_every_engine_and_manifest_keeps_the_keys(tmp_path: Path) -> None:
    module = Returns(lambda x: Unknown(x.flatten(1).softmax(1), x.mean((2, 3)) - 1))
    x = torch.rand(1, 3, 4, 4)
    config = pipeline.ExportConfig(formats=ON_CPU, out=tmp_path, latency=False)
    report = pipeline.run(from_module(module, example_input=x), config)
    for bundle in map(Bundle.open, (each.path for each in report.bundles)):
        assert [spec.name for spec in bundle.manifest.outputs] == ["logits", "pred_boxes"]
        with edgevit.load(bundle) as engine:
            found = engine.run({"x": x.numpy()})
        assert list(found) == ["logits", "pred_boxes"]
        assert np.allclose(found["pred_boxes"], x.mean((2, 3)) - 1, atol=1e-6)
