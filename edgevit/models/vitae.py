"""ViTAE: "Vision Transformer Advanced by Exploring Intrinsic Inductive Bias" (Xu et al., NeurIPS 2021,
arXiv 2106.03348).

Reduction cells make tokens from dilated convolutions and linear attention, normal cells are transformer blocks; in
both a branch of convolutions runs beside the attention. Where paper and code disagree the published checkpoints
decide: the small models have neither the class token nor the position encoding that the paper draws, and average
their tokens for the head. Under the name of the base model the authors publish another network, a plain vision
transformer with class token, position table and normal cells. The dropout of 0.1 with which the authors train their
reduction cells is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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

# A stage: the kernel of its pyramid, by how much it divides the resolution, the dilations of its convolutions.
PYRAMIDS = ((7, 4, (1, 2, 3, 4)), (3, 2, (1, 2, 3)), (3, 2, (1, 2)), (3, 2, (1, 2)))
RATIOS = tuple(ratio for _, ratio, _ in PYRAMIDS)


def conv(in_dim: int, dim: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, groups=groups)


def convolutions(*dims: int, groups: int, strides: tuple[int, ...] = (1, 1, 1)) -> nn.Sequential:
    """3x3 convolutions from width to width, BatchNorm and SiLU between them and nothing after the last."""
    layers: list[nn.Module] = []
    for (in_dim, dim), stride in zip(pairwise(dims), strides, strict=False):
        layers += [conv(in_dim, dim, stride=stride, groups=groups), nn.BatchNorm2d(dim), nn.SiLU()]
    return nn.Sequential(*layers[:-2])


def reduction_strides(stage: int) -> tuple[int, ...]:
    """The strides of the three convolutions beside the attention of a reduction cell."""
    return (2, RATIOS[stage] // 2, 1)


class Pyramid(nn.Module):
    """The pyramid reduction module: convolutions that differ in their dilation, side by side on the channels."""

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
    """The last reduction cell: the pyramid alone."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.PRM = pyramid

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.PRM(x))  # (N, C, H, W) -> (N, L, scales * E)


class TokenAttention(nn.Module):
    """The attention of a reduction cell, (N, L, scales * E) -> (N, L, C), with the norms and the MLP of the cell."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    mlp: nn.Module


class TokenPerformer(PerformerAttention, TokenAttention):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))


class ReductionCell(PyramidCell):
    """p = pyramid(x); z = attention(norm1(p)) + convolutions(x); z = z + mlp(norm2(z)). (Section 3.3)"""

    def __init__(self, pyramid: Pyramid, *, convolutions: nn.Sequential, attn: TokenAttention) -> None:
        super().__init__(pyramid)
        self.PCM = convolutions
        self.attn = attn

    def attention(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, L, scales * E) -> (N, L, C), for tokens that lie on a map of `height` x `width`."""
        return self.attn(x)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = self.PRM(x)  # (N, C, H, W) -> (N, scales * E, H/r, W/r)
        tokens = self.attn.norm1(to_tokens(pyramid))
        tokens = self.attention(tokens, *pyramid.shape[2:]) + to_tokens(self.PCM(x))  # (N, L, C')
        return tokens + self.attn.mlp(self.attn.norm2(tokens))


class NormalCell(nn.Module):
    """x = x + attention(norm1(x)) + convolutions(x); x = x + mlp(norm2(x)). (Section 3.4)

    The convolutions see the cell's input itself, without the norm.
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
    """A normal cell over a class token and then the map: the class token has no part in the convolutions."""

    def convolve(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.pad(super().convolve(x[:, 1:], height, width), (0, 0, 1, 0))  # (N, L, C) -> (N, 1 + L, C)


class Stage(nn.Module):
    """A reduction cell, which makes tokens, and the normal cells that work on them."""

    def __init__(self, reduction: nn.Module, cells: Iterable[NormalCell] = ()) -> None:
        super().__init__()
        self.RC = reduction
        self.NC = nn.ModuleList(cells)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """The input of the reduction cell -> tokens (N, L, C) that lie on a map of `height` x `width`."""
        x = self.RC(x)
        for cell in self.NC:
            x = cell(x, height, width)
        return x


class StagedNetwork(nn.Module):
    """Stages of tokens that lie on ever smaller maps, their mean, a linear head.

    Takes images whose sides are multiples of all the stages' ratios together, square or not; raises UsageError for
    others.
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


class ViTAE(StagedNetwork):
    """The small models: two reduction cells with linear attention, then a pyramid and `depth` normal cells.

    `embed_dims` are the widths of the convolutions in the three reduction cells, `token_dims` those of the tokens
    that the first two give. The third gives what its pyramid gives, twice its `embed_dims`.
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
    """The convolutions of a reduction cell: the only ones with a single BatchNorm, after the second."""
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
    """A class token and the patches, with a learned table of positions."""

    def __init__(self, dim: int, patch_size: int, patches: int) -> None:
        super().__init__()
        self.PRM = PatchEmbed(dim, patch_size)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + patches, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return add_class_token(self.PRM(x), self.cls_token, self.pos_embed)  # (N, 1 + L, C)


class PlainViTAE(nn.Module):
    """The base model: patches and a class token, then normal cells, in each of which two convolutions run beside the
    attention. The head takes the mean of the patches; the class token ends there. Bound to one size of image.
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
        # The checkpoints count three stages, of which the second is empty.
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
    """Raises UsageError where an option has not as many values as there are stages that take one."""
    if len(values) != length:
        raise UsageError(f"{option} has {len(values)} values; give {length}, one a stage")


def init_linear(module: nn.Module) -> None:
    """The authors' initialisation: linear layers from the truncated normal, convolutions as torch makes them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            init_truncated_normal(layer)


def token_dims(weights: StateDict) -> Mapping[str, Any]:
    """The widths of the tokens in a checkpoint of ViTAE-S, of which there are two generations.

    The authors' code of December 2021 has (64, 64), and 23.19 M parameters; their later one (96, 192), and 24.03 M.
    The paper's 23.6 M lie between. No widths are found in the weights of another network.
    """
    keys = [f"layers.{stage}.RC.attn.proj.weight" for stage in range(2)]
    return {"token_dims": tuple(len(weights[key]) for key in keys)} if weights.keys() >= set(keys) else {}


PREPROCESSING = Preprocessing(crop_pct=0.9)
_PAPER = "arXiv 2106.03348"
_CODE = "ViTAE-Transformer/ViTAE-Transformer README"

# name: (embed_dims, token_dims, depth, heads, mlp_ratio, groups), paper's figures. The code registers the 13M model
# with mlp_ratio 2, which makes 10.8 M parameters and 3.0 G; the paper's 13.2 M and 3.4 G call for 3. The authors
# published no weights of it: for weights trained with their code, give mlp_ratio=2.
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
