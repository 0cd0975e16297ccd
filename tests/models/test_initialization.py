"""Random weights keep activations alive, and no attention so sharp that rounding decides it."""

from __future__ import annotations

import torch
from torch import nn

from edgevit.models.initialization import randomize


def test_the_attention_of_pytorch_is_not_saturated() -> None:
    attention = nn.MultiheadAttention(256, 4, batch_first=True)
    randomize(attention, seed=0)
    x = torch.randn(1, 32, 256, generator=torch.Generator().manual_seed(0))
    _, weights = attention(x, x, x, average_attn_weights=False)
    assert 1 / 32 < weights.amax(-1).median() < 0.5
