"""A program that decomposition would not change skips it; others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevit.export import capture as capture_module
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.decomposition import skip_needless_decomposition
from tests.helpers.graphs import BATCH, run

IMAGE = torch.from_numpy(np.random.default_rng(0).standard_normal((BATCH, 4, 8, 4)).astype(np.float32))  # of `run`
WEIGHT = torch.linspace(-1, 1, 4)


class Body(nn.Module):
    """A module that computes one expression."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Whole(nn.Module):
    """Operators of all kinds that stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.group_norm, self.layer_norm, self.linear = nn.GroupNorm(1, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(self.bare(self.group_norm(self.conv(x))), (1, 0, 0, 1))[:, :, :8, 1:]
        x = torch.cat((functional.gelu(x), functional.relu(x), torch.sigmoid(x)), dim=1)
        x = self.linear(x.permute(0, 3, 2, 1).transpose(1, 3).contiguous())  # (N, 12, 8, 4)
        first, second = self.layer_norm(x).chunk(2, dim=1)
        scores = torch.softmax(first.flatten(2) @ second.reshape(-1, 32, 6), dim=1)  # (N, 6, 6)
        scores = scores * scores.mean((1,), keepdim=True).expand_as(scores)
        return torch.cat((self.pool(x).flatten(1), scores.unbind(2)[0]), dim=1)


def decompositions(module: nn.Module, monkeypatch: pytest.MonkeyPatch, *, dynamic_batch: bool = False) -> int:
    """Check the graph of `module` against PyTorch; return how often the program was decomposed."""
    count, decompose = 0, torch.export.ExportedProgram.run_decompositions

    def counted(program: torch.export.ExportedProgram, *arguments: object) -> torch.export.ExportedProgram:
        nonlocal count
        count += 1
        return cast(torch.export.ExportedProgram, cast(Any, decompose)(program, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
        graph = capture(module.eval(), [IMAGE], dynamic_batch=dynamic_batch).graph
    with torch.no_grad():
        expected = module(IMAGE.clone()).numpy()
    np.testing.assert_allclose(next(iter(run(graph).values())), expected, rtol=1e-4, atol=1e-5)
    return count


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_a_program_of_whole_operators_is_not_decomposed(
    monkeypatch: pytest.MonkeyPatch, *, dynamic_batch: bool
) -> None:
    torch.manual_seed(0)
    assert decompositions(Whole(), monkeypatch, dynamic_batch=dynamic_batch) == 0


def test_the_graph_is_that_of_a_decomposed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Whole().eval()
    whole = passes.optimize(capture(module, [IMAGE]).graph)
    monkeypatch.setattr(capture_module, "skip_needless_decomposition", lambda _: None)
    assert whole.operators == passes.optimize(capture(module, [IMAGE]).graph).operators


def write_into_a_view(x: Tensor) -> Tensor:
    doubled = 2 * x
    doubled[:, 1:3].relu_()
    return doubled


def write_into_what_is_read_later(x: Tensor) -> Tensor:
    doubled = 2 * x
    before = doubled + 1
    doubled.relu_()
    return doubled * before


def write_into_a_part(x: Tensor) -> Tensor:
    doubled = 2 * x
    doubled[:, 0] = 5.0
    return doubled


@pytest.mark.parametrize(
    "body",
    [
        write_into_a_view,
        write_into_what_is_read_later,
        write_into_a_part,
        lambda x: x.chunk(3, dim=2)[2] + 1,  # of 3, 3 and 2 rows
        lambda x: x.movedim(1, -1) + 1,
        lambda x: (2 * x).gt_(1) + 0.5,
        lambda x: (2 * x).add_(WEIGHT.double()) + 1,
        lambda x: functional.batch_norm(x, None, None, WEIGHT, training=True),
        lambda x: functional.adaptive_avg_pool2d(x, (4, 2)),
        torch.square,
        lambda x: x.chunk(1)[0] + 1,
    ],
)  # fmt: skip
def test_what_a_second_trace_replaces_is_decomposed(
    body: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decompositions(Body(body), monkeypatch) == 1


@pytest.mark.parametrize(
    "body",
    [
        lambda x: (2 * x).relu_() + 1,
        lambda x: x.contiguous(memory_format=torch.channels_last) + 1,
        lambda x: (2 * x).add_(x).clamp_(-1, 1).mul_(3),
        lambda x: functional.batch_norm(x, WEIGHT, WEIGHT.exp(), WEIGHT, None).relu_(),
        lambda x: functional.batch_norm(x, WEIGHT, WEIGHT.exp(), None, WEIGHT, eps=0.5),
        lambda x: x.flatten() + 1,
        lambda x: x.flatten(1, -2) + 1,
        lambda x: x.flatten(-3, -2) + 1,
        lambda x: x.flatten(2, 2) + 1,
        lambda x: x.chunk(2, -1)[1] + x.chunk(4, 3)[0],
    ],
)  # fmt: skip
def test_an_operator_that_stays_whole_has_the_values_of_pytorch(
    body: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decompositions(Body(body), monkeypatch) == 0


def test_a_program_is_decomposed_for_an_exporter_that_asks_for_one_of_its_operators() -> None:
    program = torch.export.export(Whole().eval(), (IMAGE,))
    skip_needless_decomposition(program)
    assert program.run_decompositions({}) is program
    norm = torch.ops.aten.group_norm.default
    decomposed = program.run_decompositions({norm: torch.export.default_decompositions()[norm]})
    assert norm not in {node.target for node in decomposed.graph.nodes}
