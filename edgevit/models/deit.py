"""DeiT, plain and with channel shuffle.

"Training data-efficient image transformers & distillation through attention" (Touvron et al., ICML 2021, arXiv
2012.12877). Channel shuffle: arXiv 2310.05642.

A vision transformer: square patches and a class token pass through layers of constant width. The network with channel
shuffle follows its authors' code, including the epsilon of the last norm: 1e-5, while all other norms have 1e-6.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from edgevit.models.channel_shuffle import Rescaling, TransformerLayer, chain, total_width
from edgevit.models.downloads import PublishedWeights
from edgevit.models.layers import (
    Attention,
    PatchEmbed,
    add_class_token,
    check_bound_size,
    check_heads,
    check_size,
    drop_path_rates,
    init_truncated_normal,
)
from edgevit.models.spec import ModelSpec, PaperFigures


class VisionTransformer(nn.Module):
    """Tokens and a class token pass through layers of constant width; the head reads only the class token.

    Subclasses implement `embed`, which converts images to tokens, and define the position table `pos_embed`. The table
    fixes the image size: the network raises UsageError for any other. `embed_dim` is the width of the layers.
    """

    pos_embed: Tensor  # (1, 1 + L, C)

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        eps: float,
        norm_eps: float,
        drop_path_rate: float,
        rescale: Rescaling | None,
        img_size: tuple[int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, heads)
        self.img_size = img_size
        self.width = total_width(embed_dim, rescale)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, self.width), std=0.02))
        self.blocks = chain(
            (
                TransformerLayer(
                    embed_dim,
                    Attention(embed_dim, heads, qkv_bias=qkv_bias),
                    mlp_ratio=mlp_ratio,
                    eps=eps,
                    drop_path=rate,
                    rescale=rescale,
                )
                for rate in drop_path_rates(drop_path_rate, (depth,))[0]
            ),
            rescale,
        )
        self.norm = nn.LayerNorm(self.width, norm_eps)
        self.head = nn.Linear(self.width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Convert images (N, 3, H, W) to tokens (N, L, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_bound_size(type(self).__name__, x, self.img_size)
        x = add_class_token(self.embed(x), self.cls_token, self.pos_embed)  # (N, 1 + L, C)
        x = self.blocks(x)
        return self.head(self.norm(x[:, 0]))


class DeiT(VisionTransformer):
    """DeiT: square patches as tokens, with a learned position table."""

    def __init__(
        self,
        rescale: Rescaling | None,
        *,
        embed_dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4,
        patch_size: int = 16,
        drop_path_rate: float = 0.1,
        img_size: tuple[int, int] = (224, 224),
        num_classes: int = 1000,
    ) -> None:
        check_size("DeiT", *img_size, divisor=patch_size)
        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            eps=1e-6,
            norm_eps=1e-6 if rescale is None else 1e-5,
            drop_path_rate=drop_path_rate,
            rescale=rescale,
            img_size=img_size,
            num_classes=num_classes,
        )
        patches = math.prod(side // patch_size for side in img_size)
        self.patch_embed = PatchEmbed(self.width, patch_size)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + patches, self.width), std=0.02))
        init_truncated_normal(self)

    def embed(self, x: Tensor) -> Tensor:
        return self.patch_embed(x)


_FILENAME = "deit_tiny_patch16_224-a1311bcf.pth"

SPECS = (
    ModelSpec(
        name="deit_t",
        family="channel_shuffle",
        factory=partial(DeiT, None),  # the plain network has no option `rescale`
        paper=PaperFigures(top1=72.2, macs_g=1.25, source="arXiv 2310.05642"),
        published=PublishedWeights(
            url=f"https://dl.fbaipublicfiles.com/deit/{_FILENAME}",
            filename=_FILENAME,
            sha256="a1311bcf",
        ),
    ),
    ModelSpec(
        name="shuffle_deit_t",
        family="channel_shuffle",
        factory=DeiT,
        options={"rescale": "learned"},
        paper=PaperFigures(source="arXiv 2310.05642"),
    ),
)
