"""The heads cost what the authors' configurations cost: multiply-adds, in G, on maps as wide as those of ViTAEv2-S."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgevit.models.dense.retinanet import RetinaNet
from edgevit.models.dense.semantic_fpn import SemanticFPN
from edgevit.models.dense.upernet import UPerNet
from edgevit.models.features import Backbone
from tests.helpers.macs import macs

# The whole system less the backbone, of section 1's table.
COSTS: dict[tuple[Callable[..., nn.Module], int], float] = {
    (RetinaNet, 224): 13.20 - 5.75,
    (RetinaNet, 512): 73.21 - 34.47,
    (RetinaNet, 800): 196.2 - 101.4,
    (SemanticFPN, 224): 9.85 - 5.75,
    (SemanticFPN, 512): 55.90 - 34.47,
    (SemanticFPN, 800): 153.7 - 101.4,
    (UPerNet, 224): 46.07 - 5.75,
    (UPerNet, 512): 245.1 - 34.47,
    (UPerNet, 800): 615.5 - 101.4,
}


class NoBackbone(Backbone):
    """Maps that cost nothing."""

    channels = (64, 128, 256, 512)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[2:]
        return tuple(
            x.new_zeros(len(x), channels, height >> level, width >> level)
            for level, channels in enumerate(self.channels, 2)
        )


@pytest.mark.parametrize(("system", "side"), COSTS)
def test_a_head_costs_what_the_authors_costs(system: Callable[..., nn.Module], side: int) -> None:
    with torch.device("meta"):
        model = system(NoBackbone(), img_size=(side, side)).eval()
    cost = COSTS[system, side]
    assert macs(model.to_empty(device="cpu"), (1, 3, side, side)) / 1e9 == pytest.approx(
        cost, abs=max(0.02, cost / 400)
    )
