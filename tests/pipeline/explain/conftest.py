"""A small network with the parts of larger ones, exported once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.tools.plants import Exported, exported_from

WIDTH = 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (2 * q) @ k.transpose(-1, -2)
        found: torch.Tensor = self.proj(scores.softmax(-1) @ v)
        return found


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.fc, self.act = nn.Linear(WIDTH, WIDTH), nn.GELU()
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale * self.attn(self.norm(x))
        found: torch.Tensor = x + self.act(self.fc(x))
        return found


class NormAct(nn.BatchNorm2d):
    """A norm with its activation, as in timm."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.act = nn.Hardswish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.act(super().forward(x))
        return found


class Stem(nn.Module):
    """Convolutions into which a pass folds the norms, one ReLU that is called twice, and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, WIDTH, 4, 4), nn.BatchNorm2d(WIDTH)
        self.mix, self.norm2 = nn.Conv2d(WIDTH, WIDTH, 1), NormAct()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        found: torch.Tensor = self.relu(self.norm2(self.mix(x)) + 1)
        return found


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = Stem(), nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        found: torch.Tensor = self.head(self.blocks(x))
        return found[:, 0]


@pytest.fixture(scope="module")
def network() -> Exported:
    return exported(side=8)


@pytest.fixture(scope="module")
def wide_network() -> Exported:
    """The same with 64 tokens, so that queries, keys and values are computed apart."""
    return exported(side=16)


def exported(*, side: int) -> Exported:
    torch.manual_seed(0)
    module = Network().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    nn.init.uniform_(module.stem.norm.running_mean, -1, 1)  # type: ignore[arg-type]
    return exported_from(module, torch.zeros(1, 3, side, side))
