"""The channel shuffle module.

"Plug n' Play: Channel Shuffle Module for Enhancing Tiny Vision Transformers" (Xu et al., 2023, arXiv 2310.05642).

Tokens have twice as many channels as in the plain network. Each layer keeps its original width: it processes the first
half of the channels (the attended ones), and the second half stays idle. After each layer the two halves are
interleaved, so half of the next layer's input channels were idle before. The embedding and the head double in width;
the cost of the layers does not change.

The shortcuts let the attended channels grow while the idle ones keep their scale, so the paper rescales the two
shortcuts of each layer by learned coefficients. Making each coefficient a scalar that is initialized to 1/2 is our
interpretation: the authors' published code is older, with a fixed 1/2 in Swin and no rescaling in DeiT.

The networks have a parameter `rescale`: one of `Rescaling`, or None for the plain network without channel shuffle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from edgevit.errors import unknown_name
from edgevit.models.layers import DropPath, Mlp

Rescaling: TypeAlias = Literal["none", "half", "learned"]


def shuffle(attended: Tensor, idle: Tensor) -> Tensor:
    """Interleave the channels of two tensors (…, C) to (…, 2C): out[2j] = attended[j], out[2j + 1] = idle[j]."""
    channels = attended.shape[-1]
    # A transpose gives the same values as torch.stack on the last axis, and takes half the time in OpenVINO.
    pairs = torch.cat((attended, idle), dim=-1).reshape(-1, 2, channels).transpose(1, 2)  # (N * …, C, 2)
    return pairs.reshape(-1, *attended.shape[1:-1], 2 * channels)


class ChannelShuffle(nn.Sequential):
    """Layers of width C on a tensor of width 2C: each processes the first half, then the halves are interleaved.

    Replaces the nn.Sequential of a plain network. Works on tokens (N, L, 2C) and on maps (N, H, W, 2C).
    """

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            attended, idle = x.chunk(2, dim=-1)
            x = shuffle(layer(attended), idle)
        return x


def chain(layers: Iterable[nn.Module], rescale: Rescaling | None) -> nn.Sequential:
    """Return a module that applies the layers in order, with channel shuffle unless `rescale` is None."""
    return nn.Sequential(*layers) if rescale is None else ChannelShuffle(*layers)


def total_width(attended: int, rescale: Rescaling | None) -> int:
    """Return the width of the tensor that a chain of layers processes: doubled unless `rescale` is None."""
    return attended if rescale is None else 2 * attended


class Rescale(nn.Module):
    """Multiply a shortcut by 1 ("none", None), by 1/2 ("half"), or by a parameter initialized to 1/2 ("learned")."""

    def __init__(self, rescale: Rescaling | None) -> None:
        super().__init__()
        if rescale is not None and rescale not in get_args(Rescaling):
            raise unknown_name("rescaling", str(rescale), get_args(Rescaling))
        self.rescale = rescale
        if rescale == "learned":
            self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        match self.rescale:
            case "learned":
                return x * self.scale
            case "half":
                return x * 0.5
            case _:
                return x


class TransformerLayer(nn.Module):
    """Transformer layer: x = s1 x + attn(norm1(x)); x = s2 x + mlp(norm2(x)).

    s1 and s2 are the scales of the shortcuts. `attn` must keep the shape of its input: tokens (N, L, C) or a map
    (N, H, W, C).
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        *,
        mlp_ratio: float,
        eps: float = 1e-5,
        drop_path: float,
        rescale: Rescaling | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.rescale_attn = Rescale(rescale)
        self.rescale_mlp = Rescale(rescale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rescale_attn(x) + self.drop_path(self.attn(self.norm1(x)))
        return self.rescale_mlp(x) + self.drop_path(self.mlp(self.norm2(x)))
