"""Operators that edgevit translates itself: few nodes, and the values of PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.export.capture import capture
from edgevit.models.shiftvit import ShiftViT
from tests.helpers.graphs import BATCH, run

_END = 2**63 - 1
SLICE = torch.ops.aten.slice.Tensor

# Dimension, start, end and step.
SLICES: tuple[tuple[int, int | None, int | None, int], ...] = (
    (1, None, None, 1),
    (1, None, 3, 1),
    (1, 2, None, 1),
    (1, 2, 5, 1),
    (1, 0, _END, 2),
    (1, 1, 6, 3),
    (1, -3, -1, 1),
    (1, -100, 100, 1),
    (1, 2, 100, 4),
    (1, -_END - 1, _END, 1),
    (-1, 1, -1, 1),
    (-2, -4, None, 2),
    (1, 5, 2, 1),
    (1, 9, 12, 1),
)


class Slices(nn.Module):
    """All of `SLICES`, each as one output."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [-SLICE(x, *bounds) for bounds in SLICES]


class HalfOfDoubled(nn.Module):
    """Slices at rows that only the batch tells: as the start, as the end, and counted from the end."""

    def forward(self, x: Tensor) -> Tensor:
        rows, doubled = x.shape[0], torch.cat((x, 2 * x))
        return doubled[rows:] - 3 * doubled[:rows] + 5 * doubled[-rows:] - 7 * doubled[rows : 2 * rows]


def torch_input(*shape: int) -> Tensor:
    """Return the input on which `run` runs a graph."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def test_a_slice_is_that_of_pytorch_at_every_edge() -> None:
    x = torch_input(2, 7, 6)
    graph = capture(Slices(), [x]).graph
    assert graph.operators["Slice"] == len(SLICES)
    assert not graph.operators["Cast"] and not graph.operators["Reshape"]
    for want, got in zip(Slices()(x), run(graph).values(), strict=True):
        np.testing.assert_array_equal(got, want.numpy())


def test_a_slice_at_a_row_that_the_batch_tells_is_that_of_pytorch() -> None:
    graph = capture(HalfOfDoubled(), [torch.zeros(4, 5)], dynamic_batch=True).graph
    got = next(iter(run(graph).values()))
    np.testing.assert_allclose(got, HalfOfDoubled()(torch_input(BATCH, 5)).numpy(), rtol=1e-5)


def test_a_shift_takes_one_node_a_slice() -> None:
    model = ShiftViT(embed_dim=16, depths=(1,), mlp_ratio=1.0, patch_size=1, num_classes=2).eval()
    operators = capture(model, [torch.zeros(2, 3, 4, 4)]).graph.operators
    assert operators["Slice"] == 9  # five groups of channels, four of which lose a row or column
    assert not operators["Cast"]
