"""PyTorch modules for several tests."""

from __future__ import annotations

import torch
from torch import nn


class InPlace(nn.Module):
    """A sliced assignment, which becomes ScatterND."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        out[:, 1:] = x[:, :-1]
        return out * 2
