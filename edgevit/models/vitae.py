"""ViTAE, transformers with reduction cells and normal cells.

"ViTAE: Vision Transformer Advanced by Exploring Intrinsic Inductive Bias" (Xu et al., NeurIPS 2021, arXiv 2106.03348).

Reduction cells create tokens with dilated convolutions and linear attention; normal cells are transformer blocks. Both
have a branch of convolutions parallel to the attention. If the paper and the code disagree, this implementation follows
the published checkpoints: the small models have neither the class token nor the position encoding of the paper's
figures, and their head reads the mean of the tokens. The authors' base model is a different network: a plain vision
transformer with a class token, a position table and normal cells. The authors train their reduction cells with a
dropout of 0.1, which is left out here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError
from edgevit.images import Preprocessing
from edgevit.models.downloads import PublishedWeights
from edgevit.models.layers import (
    Attention,
    DropPath,
    Mlp,
    PatchEmbed,
    PerformerAttention,
    add_class_token,
    check_bound_size,
    check_heads,
    check_size,
    drop_path_rates,
    init_truncated_normal,
    to_map,
    to_tokens,
)
from edgevit.models.spec import ModelSpec, PaperFigures, StateDict

# Of each stage: the kernel size of its pyramid, the factor that divides the resolution, the dilations.
PYRAMIDS = ((7, 4, (1, 2, 3, 4)), (3, 2, (1, 2, 3)), (3, 2, (1, 2)), (3, 2, (1, 2)))
RATIOS = tuple(ratio for _, ratio, _ in PYRAMIDS)


def conv(in_dim: int, dim: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with padding 1."""
    return nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, groups=groups)


def convolutions(*dims: int, groups: int, strides: tuple[int, ...] = (1, 1, 1)) -> nn.Sequential:
    """Return 3x3 convolutions from each width to the next, with BatchNorm and SiLU after all but the last."""
    layers: list[nn.Module] = []
    for (in_dim, dim), stride in zip(pairwise(dims), strides, strict=False):
        layers += [conv(in_dim, dim, stride=stride, groups=groups), nn.BatchNorm2d(dim), nn.SiLU()]
    return nn.Sequential(*layers[:-2])


def reduction_strides(stage: int) -> tuple[int, ...]:
    """Return the strides of the three convolutions parallel to the attention of a reduction cell."""
    return (2, RATIOS[stage] // 2, 1)


class Pyramid(nn.Module):
    """Pyramid reduction module: parallel convolutions with different dilations, concatenated along the channels."""

    def __init__(self, in_dim: int, dim: int, *, stage: int) -> None:
        super().__init__()
        kernel, stride, dilations = PYRAMIDS[stage]
        self.out_dim = dim * len(dilations)
        self.convs = nn.ModuleList()
        for dilation in dilations:
            padding = math.ceil(((kernel - 1) * dilation + 1 - stride) / 2)
            scale = nn.Conv2d(in_dim, dim, kernel, stride=stride, padding=padding, dilation=dilation)
            self.convs.append(nn.Sequential(scale, nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([scale(x) for scale in self.convs], dim=1)  # (N, C, H, W) -> (N, scales * E, H/r, W/r)


class PyramidCell(nn.Module):
    """The last reduction cell, which consists of the pyramid only."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.PRM = pyramid

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.PRM(x))  # (N, C, H, W) -> (N, L, scales * E)


class TokenAttention(nn.Module):
    """Attention of a reduction cell, (N, L, scales * E) -> (N, L, C), and the norms and the MLP of the cell."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    mlp: nn.Module


class TokenPerformer(PerformerAttention, TokenAttention):
    """Linear attention of a reduction cell."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))


class ReductionCell(PyramidCell):
    """Reduction cell: p = pyramid(x); z = attention(norm1(p)) + convolutions(x); z += mlp(norm2(z)). (Section 3.3)"""

    def __init__(self, pyramid: Pyramid, *, convolutions: nn.Sequential, attn: TokenAttention) -> None:
        super().__init__(pyramid)
        self.PCM = convolutions
        self.attn = attn

    def attention(self, x: Tensor, height: int, width: int) -> Tensor:
        """Apply attention to the tokens of a map of `height` x `width`, (N, L, scales * E) -> (N, L, C)."""
        return self.attn(x)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = self.PRM(x)  # (N, C, H, W) -> (N, scales * E, H/r, W/r)
        tokens = self.attn.norm1(to_tokens(pyramid))
        tokens = self.attention(tokens, *pyramid.shape[2:]) + to_tokens(self.PCM(x))  # (N, L, C')
        return tokens + self.attn.mlp(self.attn.norm2(tokens))


class NormalCell(nn.Module):
    """Normal cell: x = x + attention(norm1(x)) + convolutions(x); x = x + mlp(norm2(x)). (Section 3.4)

    The convolutions read the input of the cell without the norm.
    """

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float, convolutions: nn.Sequential, drop_path: float
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.PCM = convolutions

    def attention(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.attn(x)

    def convolve(self, x: Tensor, height: int, width: int) -> Tensor:
        return to_tokens(self.PCM(to_map(x, height, width)))  # (N, L, C) -> (N, C, H, W) -> (N, L, C)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        convolved = self.drop_path(self.convolve(x, height, width))
        x = x + self.drop_path(self.attention(self.norm1(x), height, width)) + convolved
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassTokenCell(NormalCell):
    """Normal cell for a class token followed by the tokens of a map; the convolutions skip the class token."""

    def convolve(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.pad(super().convolve(x[:, 1:], height, width), (0, 0, 1, 0))  # (N, L, C) -> (N, 1 + L, C)


class Stage(nn.Module):
    """A reduction cell, which creates tokens, and the normal cells that process them."""

    def __init__(self, reduction: nn.Module, cells: Iterable[NormalCell] = ()) -> None:
        super().__init__()
        self.RC = reduction
        self.NC = nn.ModuleList(cells)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Convert the input of the reduction cell to the tokens (N, L, C) of a map of `height` x `width`."""
        x = self.RC(x)
        for cell in self.NC:
            x = cell(x, height, width)
        return x


class StagedNetwork(nn.Module):
    """Stages with token maps of decreasing size, the mean of the last tokens, a linear head.

    Both sides of an image must be multiples of the product of all stages' ratios; images need not be square. Raises
    UsageError for other sizes.
    """

    def __init__(self, stages: list[Stage], *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(stages)
        self.head = nn.Linear(dim, num_classes)
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        check_size(type(self).__name__, height, width, divisor=math.prod(RATIOS[: len(self.layers)]))
        for ratio, stage in zip(RATIOS, self.layers, strict=False):
            height, width = height // ratio, width // ratio
            tokens = stage(x, height, width)  # (N, C, H, W) -> (N, H/r * W/r, C')
            x = to_map(tokens, height, width)  # the next stage's input
        return self.head(tokens.mean(1))


def stage_maps(stages: Iterable[nn.Module], x: Tensor) -> Iterator[Tensor]:
    """Yield the map (N, C, H, W) that each stage makes of the one before."""
    height, width = x.shape[2:]
    for ratio, stage in zip(RATIOS, stages, strict=False):
        height, width = height // ratio, width // ratio
        x = to_map(stage(x, height, width), height, width)
        yield x


class ViTAE(StagedNetwork):
    """The small models: two reduction cells with linear attention, then a pyramid and `depth` normal cells.

    `embed_dims` are the widths of the convolutions in the three reduction cells. `token_dims` are the widths of the
    tokens after the first two; the tokens of the third have the width of its pyramid, twice its `embed_dims`.
    """

    def __init__(
        self,
        *,
        embed_dims: tuple[int, int, int],
        token_dims: tuple[int, int],
        depth: int,
        heads: int,
        mlp_ratio: float,
        groups: int,
        drop_path_rate: float = 0.0,
        num_classes: int = 1000,
    ) -> None:
        check_length("embed_dims", embed_dims, 3)
        check_length("token_dims", token_dims, 2)
        pyramids = [
            Pyramid(in_dim, dim, stage=stage)
            for stage, (in_dim, dim) in enumerate(zip((3, *token_dims), embed_dims, strict=True))
        ]
        reductions = [
            ReductionCell(
                pyramids[stage],
                convolutions=_reduction_convolutions(in_dim, embed_dims[stage], dim, stage=stage),
                attn=TokenPerformer(pyramids[stage].out_dim, dim),
            )
            for stage, (in_dim, dim) in enumerate(pairwise((3, *token_dims)))
        ]
        dim = pyramids[-1].out_dim
        cells = [
            NormalCell(
                dim,
                heads,
                mlp_ratio=mlp_ratio,
                convolutions=convolutions(dim, int(dim * mlp_ratio), dim, dim, groups=groups).append(nn.SiLU()),
                drop_path=rate,
            )
            for rate in drop_path_rates(drop_path_rate, (depth,))[0]
        ]
        stages = [*(Stage(reduction) for reduction in reductions), Stage(PyramidCell(pyramids[-1]), cells)]
        super().__init__(stages, dim=dim, num_classes=num_classes)


def _reduction_convolutions(in_dim: int, dim: int, out_dim: int, *, stage: int) -> nn.Sequential:
    """Return the convolutions of a reduction cell, which have a single BatchNorm, after the second convolution."""
    first, second, third = reduction_strides(stage)
    return nn.Sequential(
        conv(in_dim, dim, stride=first),
        nn.SiLU(),
        conv(dim, dim, stride=second),
        nn.BatchNorm2d(dim),
        nn.SiLU(),
        conv(dim, out_dim, stride=third),
        nn.SiLU(),
    )


class PatchEmbedding(nn.Module):
    """A class token followed by the patches, with a learned position table."""

    def __init__(self, dim: int, patch_size: int, patches: int) -> None:
        super().__init__()
        self.PRM = PatchEmbed(dim, patch_size)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + patches, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return add_class_token(self.PRM(x), self.cls_token, self.pos_embed)  # (N, 1 + L, C)


class PlainViTAE(nn.Module):
    """The base model: a class token and patches, then normal cells with two convolutions parallel to the attention.

    The head reads the mean of the patches and ignores the class token. The position table fixes the image size: the
    network raises UsageError for any other.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        groups: int,
        patch_size: int = 16,
        img_size: tuple[int, int] = (224, 224),
        drop_path_rate: float = 0.0,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        check_size("ViTAE", *img_size, divisor=patch_size)
        self.img_size = img_size
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        cells = [
            ClassTokenCell(
                embed_dim,
                heads,
                mlp_ratio=mlp_ratio,
                convolutions=convolutions(embed_dim, int(embed_dim * mlp_ratio), embed_dim, groups=groups),
                drop_path=rate,
            )
            for rate in drop_path_rates(drop_path_rate, (depth,))[0]
        ]
        embedding = PatchEmbedding(embed_dim, patch_size, math.prod(self.grid))
        # The checkpoints have three stages; the second is empty.
        self.layers = nn.ModuleList((Stage(embedding), Stage(nn.Identity()), Stage(nn.Identity(), cells)))
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        check_bound_size("ViTAE", x, self.img_size)
        for stage in self.layers:
            x = stage(x, *self.grid)  # (N, 3, H, W) -> (N, 1 + L, C)
        return self.head(self.fc_norm(x[:, 1:].mean(1)))


def check_length(option: str, values: tuple[int, ...], length: int) -> None:
    """Raise UsageError if an option does not have `length` values, one for each stage that uses it."""
    if len(values) != length:
        raise UsageError(f"{option} needs {length} values, one per stage, got {len(values)}")


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers from a truncated normal, as the authors do; convolutions keep PyTorch's default."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            init_truncated_normal(layer)


def token_dims(weights: StateDict) -> Mapping[str, Any]:
    """Return the option `token_dims` of a ViTAE-S checkpoint, of which two versions exist.

    The authors' code of December 2021 uses (64, 64), which gives 23.19 M parameters; their later code uses (96, 192),
    which gives 24.03 M. The paper reports 23.6 M. For weights of another network, no option is returned.
    """
    keys = [f"layers.{stage}.RC.attn.proj.weight" for stage in range(2)]
    return {"token_dims": tuple(len(weights[key]) for key in keys)} if weights.keys() >= set(keys) else {}


PREPROCESSING = Preprocessing(crop_pct=0.9)
_PAPER = "arXiv 2106.03348"
_CODE = "ViTAE-Transformer/ViTAE-Transformer README"

# name: ((embed_dims, token_dims, depth, heads, mlp_ratio, groups), the paper's figures). The authors' code registers
# the 13M model with mlp_ratio 2, which gives 10.8 M parameters and 3.0 G MACs; the paper's 13.2 M and 3.4 G require 3.
# The authors published no weights of this model: for weights trained with their code, use mlp_ratio=2.
_Variant = tuple[tuple[int, int, int], tuple[int, int], int, int, int, int]
_VARIANTS: dict[str, tuple[_Variant, PaperFigures]] = {
    "vitae_t": (
        ((64, 64, 128), (64, 64), 7, 4, 2, 64),
        PaperFigures(top1=75.3, params_m=4.8, macs_g=1.5, source=_PAPER),
    ),
    "vitae_6m": (
        ((64, 64, 128), (64, 64), 10, 4, 2, 64),
        PaperFigures(top1=77.9, params_m=6.5, macs_g=2.0, source=_PAPER),
    ),
    "vitae_13m": (
        ((64, 64, 160), (64, 64), 11, 5, 3, 64),
        PaperFigures(top1=81.0, params_m=13.2, macs_g=3.4, source=_PAPER),
    ),
    "vitae_s": (
        ((64, 64, 192), (96, 192), 14, 6, 3, 96),
        PaperFigures(top1=82.0, params_m=23.6, macs_g=5.6, source=_PAPER),
    ),
}

README = "https://github.com/ViTAE-Transformer/ViTAE-Transformer/tree/main/Image-Classification"
_ON_DRIVE = f"on Google Drive, linked in the README of {README}"
_PUBLISHED = {
    "vitae_t": PublishedWeights(where=_ON_DRIVE, filename="ViTAE-T.pth.tar"),
    "vitae_6m": PublishedWeights(where=_ON_DRIVE),
    "vitae_s": PublishedWeights(where=_ON_DRIVE, filename="ViTAE-S.pth.tar"),
}

SPECS = (
    *(
        ModelSpec(
            name=name,
            family="vitae",
            factory=ViTAE,
            options={
                "embed_dims": embed_dims,
                "token_dims": widths,
                "depth": depth,
                "heads": heads,
                "mlp_ratio": mlp_ratio,
                "groups": groups,
                "drop_path_rate": 0.1,
            },
            preprocessing=PREPROCESSING,
            paper=paper,
            weights_options=token_dims if name == "vitae_s" else None,
            published=_PUBLISHED.get(name),
        )
        for name, ((embed_dims, widths, depth, heads, mlp_ratio, groups), paper) in _VARIANTS.items()
    ),
    ModelSpec(
        name="vitae_b",
        family="vitae",
        factory=PlainViTAE,
        options={"embed_dim": 768, "depth": 12, "heads": 12, "mlp_ratio": 4, "groups": 192},
        preprocessing=PREPROCESSING,
        paper=PaperFigures(top1=83.8, source=_CODE),
        published=PublishedWeights(where=_ON_DRIVE),
    ),
)
