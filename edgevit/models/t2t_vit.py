"""T2T-ViT: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (Yuan et al., ICCV 2021,
arXiv 2101.11986), plain and with channel shuffle (arXiv 2310.05642).

A vision transformer whose tokens come from overlapping windows in three steps, with linear attention between them. The
dropout of 0.1 with which the authors train that attention is left out. With channel shuffle only what follows the three
steps is wider; for this network it is derived from the paper, whose authors published none.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.images import Preprocessing
from edgevit.models.channel_shuffle import Rescaling
from edgevit.models.deit import VisionTransformer
from edgevit.models.downloads import PublishedWeights
from edgevit.models.layers import PerformerAttention, check_size, init_truncated_normal
from edgevit.models.spec import ModelSpec, PaperFigures, StateDict

REDUCTION = 16  # pixels a side of a token: the strides of the three steps together


def soft_split(x: Tensor, *, kernel: int, stride: int, padding: int) -> Tensor:
    """Overlapping windows as tokens, (N, H, W, C) -> (N, H/s * W/s, C * k * k): F.unfold, bit for bit. (Section 3.1)

    For s <= k <= 2s, a window lies in two blocks of s rows, and in two of s columns: slices and one concatenation an
    axis make all windows. A convolution with one-hot kernels does the same, as fast, with 2 % more multiply-adds to
    the model; and to quantisation it would be a layer like others.
    """
    channels = x.shape[3]
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    rows, columns = x.shape[1] // stride, x.shape[2] // stride  # of blocks, one more than of windows
    x = _overlap(x.reshape(-1, rows, stride * x.shape[2] * channels), kernel, stride)  # (N, H/s, k * W * C)
    x = _overlap(x.reshape(-1, kernel, columns, stride * channels), kernel, stride)  # (N * H/s, k, W/s, k * C)
    x = x.transpose(1, 2).reshape(-1, kernel * kernel, channels).transpose(1, 2)  # (N * H/s * W/s, C, k * k)
    return x.reshape(-1, (rows - 1) * (columns - 1), channels * kernel * kernel)


def _overlap(blocks: Tensor, kernel: int, stride: int) -> Tensor:
    """(…, B, s * u) -> (…, B - 1, k * u): to every block the first k - s of the next one's s units."""
    units = blocks.shape[-1] // stride
    return torch.cat((blocks[..., :-1, :], blocks[..., 1:, : (kernel - stride) * units]), dim=-1)


class TokenPerformer(PerformerAttention):
    """y = attention(norm1(x)), whose shortcut is its values; y + mlp(norm2(y)). (N, L, C) -> (N, L, C')"""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Images to tokens: windows, attention, windows, attention, windows, projection. (Figure 4)"""

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.attention1 = TokenPerformer(7 * 7 * 3, token_dim)
        self.attention2 = TokenPerformer(3 * 3 * token_dim, token_dim)
        self.project = nn.Linear(3 * 3 * token_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        x = soft_split(x.permute(0, 2, 3, 1), kernel=7, stride=4, padding=2)  # (N, H/4 * W/4, 147)
        x = self.attention1(x)  # (N, H/4 * W/4, C)
        x = soft_split(x.reshape(-1, height // 4, width // 4, x.shape[2]), kernel=3, stride=2, padding=1)
        x = self.attention2(x)  # (N, H/8 * W/8, C)
        x = soft_split(x.reshape(-1, height // 8, width // 8, x.shape[2]), kernel=3, stride=2, padding=1)
        return self.project(x)  # (N, H/16 * W/16, C')


def sinusoids(positions: int, dim: int) -> Tensor:
    """The table (1, positions, dim) of "Attention Is All You Need", section 3.5: sines in even channels, cosines in odd
    ones, of angles position / 10000^(2i / dim)."""
    frequencies = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (dim / 2)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies  # (positions, dim / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[None, :, :dim].float()


class T2TViT(VisionTransformer):
    """The network. Its table of positions is a constant, not a weight, and follows the size of the image."""

    def __init__(
        self,
        rescale: Rescaling | None,
        *,
        embed_dim: int = 256,
        depth: int,
        heads: int = 4,
        mlp_ratio: float = 2,
        token_dim: int = 64,
        drop_path_rate: float = 0.1,
        img_size: tuple[int, int] = (224, 224),
        num_classes: int = 1000,
    ) -> None:
        check_size("T2T-ViT", *img_size, divisor=REDUCTION)
        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            eps=1e-5,
            norm_eps=1e-5,
            drop_path_rate=drop_path_rate,
            rescale=rescale,
            img_size=img_size,
            num_classes=num_classes,
        )
        self.tokens_to_token = TokensToToken(self.width, token_dim)
        tokens = (img_size[0] // REDUCTION) * (img_size[1] // REDUCTION)
        self.register_buffer("pos_embed", sinusoids(1 + tokens, self.width), persistent=False)
        init_truncated_normal(self)

    def embed(self, x: Tensor) -> Tensor:
        return self.tokens_to_token(x)


def without_constants(weights: StateDict) -> StateDict:
    """The weights without the table of positions, which the authors' checkpoints hold and the network computes."""
    return {key: value for key, value in weights.items() if key != "pos_embed"}


_PREPROCESSING = Preprocessing(crop_pct=0.9)

# depth: the figures of the authors' README for the plain network.
_VARIANTS = {
    7: PaperFigures(top1=71.7, params_m=4.3, macs_g=1.1, source="yitu-opensource/T2T-ViT README"),
    10: PaperFigures(top1=75.2, params_m=5.9, macs_g=1.5, source="yitu-opensource/T2T-ViT README"),
    12: PaperFigures(top1=76.5, params_m=6.9, macs_g=1.8, source="yitu-opensource/T2T-ViT README"),
}

_RELEASE = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main"
_FILENAMES = {7: "71.7_T2T_ViT_7.pth.tar", 10: "75.2_T2T_ViT_10.pth.tar", 12: "76.5_T2T_ViT_12.pth.tar"}

SPECS = (
    *(
        ModelSpec(
            name=f"t2t_vit_{depth}",
            family="channel_shuffle",
            factory=partial(T2TViT, None),  # plain: it has no option `rescale`
            options={"depth": depth},
            preprocessing=_PREPROCESSING,
            paper=paper,
            convert_state_dict=without_constants,
            published=PublishedWeights(url=f"{_RELEASE}/{_FILENAMES[depth]}", filename=_FILENAMES[depth]),
        )
        for depth, paper in _VARIANTS.items()
    ),
    *(
        ModelSpec(
            name=f"shuffle_t2t_{depth}",
            family="channel_shuffle",
            factory=T2TViT,
            options={"depth": depth, "rescale": "learned"},
            preprocessing=_PREPROCESSING,
            paper=PaperFigures(source="arXiv 2310.05642"),
            convert_state_dict=without_constants,
        )
        for depth in _VARIANTS
    ),
)
