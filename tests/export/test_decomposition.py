"""A program that decomposition would not change skips it; others do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevit.export import capture as capture_module
from edgevit.export.capture import capture
from edgevit.export.decomposition import WHOLE, skip_needless_decomposition
from edgevit.export.graph import OnnxGraph

IMAGE = torch.zeros(2, 4, 8, 4)


class Whole(nn.Module):
    """Every operator of `WHOLE`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.group_norm = nn.GroupNorm(1, 4)
        self.layer_norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(self.group_norm(self.conv(x)), (1, 0, 0, 1))[:, :, :8, 1:]
        x = torch.cat((functional.gelu(x), functional.relu(x), torch.sigmoid(x)), dim=1)
        x = self.linear(x.permute(0, 3, 2, 1).transpose(1, 3).mean((1,)))
        normed: Tensor = self.layer_norm(x)
        return normed * 2.0 + x - 3.0 * x


class Reshaped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 3).reshape(2, -1)


def traced(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (IMAGE,))


def operators(program: torch.export.ExportedProgram) -> set[object]:
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def nodes(graph: OnnxGraph) -> list[tuple[object, ...]]:
    """Return each node with the nodes that it reads and its shapes; the values have other names."""
    return [
        (
            node.name,
            [reads.name for value in node.inputs if value and (reads := value.producer())],
            *(str(value.shape) for value in node.outputs),
        )
        for node in graph.model.graph
    ]


def test_the_graph_is_that_of_a_decomposed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Whole()
    with monkeypatch.context() as patch:
        patch.setattr(torch.export.ExportedProgram, "run_decompositions", None)  # skipped
        graph = capture(module, [IMAGE], dynamic_batch=True).graph
    monkeypatch.setattr(capture_module, "skip_needless_decomposition", lambda _: None)
    assert nodes(graph) == nodes(capture(module, [IMAGE], dynamic_batch=True).graph)


def test_a_program_is_decomposed_for_an_exporter_that_asks_for_one_of_its_operators() -> None:
    program = traced(Whole())
    assert operators(program) == WHOLE
    skip_needless_decomposition(program)
    assert program.run_decompositions({}) is program
    norm = torch.ops.aten.group_norm.default
    assert norm not in operators(program.run_decompositions({norm: torch.export.default_decompositions()[norm]}))


def test_a_program_with_a_reshape_is_decomposed() -> None:
    program = traced(Reshaped())
    skip_needless_decomposition(program)
    assert program.run_decompositions({}) is not program
