"""Export your own nn.Module. On the command line: edgevit export examples/own_model.py:build --img-size 64 --fmt ort

python examples/own_model.py [OUT]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import edgevit


class TinyNet(nn.Module):
    """A small convolutional network: images (N, 3, H, W) to scores (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.head = nn.Linear(32, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(images)  # (N, 32, H/4, W/4)
        scores: torch.Tensor = self.head(features.mean((2, 3)))  # (N, classes)
        return scores


def build() -> nn.Module:
    """The model, with its weights loaded; `edgevit export FILE:build` calls this."""
    torch.manual_seed(0)
    return TinyNet()


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "bundles"
    images = torch.rand(1, 3, 64, 64)
    bundle = edgevit.export(build(), name="tinynet", example_input=images, fmt="openvino", out=out)
    print(f"exported {bundle.path}")
