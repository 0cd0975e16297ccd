"""T2T-ViT, plain and with channel shuffle.

"Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (Yuan et al., ICCV 2021, arXiv 2101.11986).
Channel shuffle: arXiv 2310.05642.

A vision transformer that creates its tokens from overlapping windows in three steps, with linear attention between the
steps. The authors train this attention with a dropout of 0.1, which is left out here. With channel shuffle, only the
part after the three steps is wider. The authors of channel shuffle published no code for this network, so it is derived
from their paper.
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

REDUCTION = 16  # side of a token in pixels: the product of the strides of the three steps


def soft_split(x: Tensor, *, kernel: int, stride: int, padding: int) -> Tensor:
    """Extract overlapping windows as tokens, (N, H, W, C) -> (N, H/s * W/s, C * k * k). (Section 3.1)

    Bit-exact with F.unfold. If s <= k <= 2s, each window covers parts of two blocks of s rows and of two blocks of s
    columns, so slices and one concatenation per axis give all windows, which plain exports run faster than F.unfold. An
    export by edgevit makes the same of both (`export/passes/slice_windows.py`).
    """
    channels = x.shape[3]
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    rows, columns = x.shape[1] // stride, x.shape[2] // stride  # numbers of blocks: one more than windows
    x = _overlap(x.reshape(-1, rows, stride * x.shape[2] * channels), kernel, stride)  # (N, H/s, k * W * C)
    x = _overlap(x.reshape(-1, kernel, columns, stride * channels), kernel, stride)  # (N * H/s, k, W/s, k * C)
    x = x.transpose(1, 2).reshape(-1, kernel * kernel, channels).transpose(1, 2)  # (N * H/s * W/s, C, k * k)
    return x.reshape(-1, (rows - 1) * (columns - 1), channels * kernel * kernel)


def _overlap(blocks: Tensor, kernel: int, stride: int) -> Tensor:
    """Append to each block the first k - s of the next block's s units, (..., B, s * u) -> (..., B - 1, k * u)."""
    units = blocks.shape[-1] // stride
    return torch.cat((blocks[..., :-1, :], blocks[..., 1:, : (kernel - stride) * units]), dim=-1)


class TokenPerformer(PerformerAttention):
    """Linear attention, then an MLP: y = attention(norm1(x)); y = y + mlp(norm2(y)). (N, L, C) -> (N, L, C')

    The shortcut of the attention is its values.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Convert images to tokens: windows, attention, windows, attention, windows, projection. (Figure 4)"""

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
    """Return the position table (1, positions, dim) of "Attention Is All You Need", section 3.5.

    Even channels hold the sines and odd channels the cosines of the angles position / 10000^(2i / dim).
    """
    frequencies = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (dim / 2)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies  # (positions, dim / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[None, :, :dim].float()


class T2TViT(VisionTransformer):
    """The T2T-ViT network. Its position table is not a weight, but a constant computed for the image size."""

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
    """Remove the position table, which the authors' checkpoints contain and the network computes."""
    return {key: value for key, value in weights.items() if key != "pos_embed"}


_PREPROCESSING = Preprocessing(crop_pct=0.9)

# depth: figures of the plain network in the authors' README.
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
            factory=partial(T2TViT, None),  # the plain network has no option `rescale`
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
