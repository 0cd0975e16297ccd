"""Random weights under which float32 is not enough get BatchNorm statistics that fit, and others keep theirs."""

from __future__ import annotations

import torch
from torch import nn

from tests.tools.conditioning import MAX_FLOAT32_ERROR, float32_error, settle_statistics

SHAPE = (2, 4, 4)


class Unstable(nn.Module):
    """The difference of two large activations, whose size the BatchNorm is there to undo."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.norm(1e6 * x))


def test_statistics_are_set_if_float32_is_not_enough() -> None:
    module = Unstable().eval()
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert float32_error(module, noise) > 100 * MAX_FLOAT32_ERROR
    assert settle_statistics(module, noise)
    assert float32_error(module, noise) < MAX_FLOAT32_ERROR
    assert not any(each.training for each in module.modules())


def test_other_weights_are_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert not settle_statistics(module, noise)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not settle_statistics(nn.Conv2d(2, 2, 1), noise)
