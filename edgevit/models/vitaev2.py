"""ViTAEv2, ViTAE's cells in four stages.

"ViTAEv2: Vision Transformer Advanced by Exploring Inductive Bias for Image Recognition and Beyond" (Zhang et al., IJCV
2023, arXiv 2202.10108).

Four stages of ViTAE's cells, each with a reduction cell and normal cells. The attention of the first two stages works
in windows of 7x7 tokens. The windows are never shifted: the parallel convolutions pass information between windows. If
a map is not a multiple of the window, it is padded with zeros on all sides after the norm, and the windows attend to
these zeros too. The authors' code takes its stochastic depth rates from slices that overlap between stages; here they
rise linearly over all cells.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.models.downloads import PublishedWeights
from edgevit.models.features import Backbone
from edgevit.models.layers import (
    Attention,
    Mlp,
    attend,
    check_heads,
    drop_path_rates,
    merge_heads,
    merge_windows,
    partition_windows,
    split_heads,
)
from edgevit.models.spec import ModelSpec, PaperFigures, StateDict
from edgevit.models.vitae import (
    PREPROCESSING,
    RATIOS,
    README,
    NormalCell,
    Pyramid,
    ReductionCell,
    Stage,
    StagedNetwork,
    TokenAttention,
    check_length,
    convolutions,
    reduction_strides,
    stage_maps,
)

WINDOW = 7
WINDOW_STAGES = (0, 1)  # the other stages attend to the whole map


def attend_in_windows(attention: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
    """Apply `attention` to each window of a map's tokens, (N, H * W, C) -> (N, H * W, C')."""
    rows, columns = -height % WINDOW, -width % WINDOW  # numbers of zeros; half of them, rounded down, precede the map
    top, left = rows // 2, columns // 2
    x = x.reshape(-1, height, width, x.shape[2])  # (N, H, W, C)
    if rows or columns:
        x = F.pad(x, (0, 0, left, columns - left, top, rows - top))
    x = attention(partition_windows(x, WINDOW))  # (N * windows, 49, C')
    x = merge_windows(x, WINDOW, height + rows, width + columns)
    if rows or columns:
        x = x[:, top : top + height, left : left + width]
    return x.reshape(-1, height * width, x.shape[3])


class ValueSkipAttention(Attention):
    """Attention that adds its values to its output: a shortcut for cells that change the width (as in T2T-ViT)."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # each (N, L, C)
        heads = (split_heads(part, self.heads) for part in (q, k, v))
        return v + self.proj(merge_heads(attend(*heads, scale=self.scale, bias=bias)))


class TokenTransformer(TokenAttention):
    """Softmax attention of a reduction cell."""

    def __init__(self, attention: Attention, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


class WindowReductionCell(ReductionCell):
    """Reduction cell with attention in windows."""

    def attention(self, x: Tensor, height: int, width: int) -> Tensor:
        return attend_in_windows(self.attn, x, height, width)


class WindowNormalCell(NormalCell):
    """Normal cell with attention in windows."""

    def attention(self, x: Tensor, height: int, width: int) -> Tensor:
        return attend_in_windows(self.attn, x, height, width)


class ViTAEv2(StagedNetwork):
    """The ViTAEv2 network: four stages, each with a reduction cell and `depths[stage]` normal cells.

    `embed_dims` are the widths of the convolutions in the reduction cells, `token_dims` the widths of each stage's
    tokens. Raises UsageError if an option does not have one value per stage.
    """

    def __init__(
        self,
        *,
        embed_dims: tuple[int, int, int, int],
        token_dims: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        heads: tuple[int, int, int, int],
        reduction_heads: tuple[int, int, int, int],
        mlp_ratio: float = 4,
        groups: tuple[int, int, int, int] = (1, 32, 64, 128),
        reduction_groups: tuple[int, int, int, int] = (1, 16, 32, 64),
        drop_path_rate: float = 0.0,
        num_classes: int = 1000,
    ) -> None:
        for option, values in (
            ("embed_dims", embed_dims),
            ("token_dims", token_dims),
            ("depths", depths),
            ("heads", heads),
            ("reduction_heads", reduction_heads),
            ("groups", groups),
            ("reduction_groups", reduction_groups),
        ):
            check_length(option, values, len(RATIOS))
        self.token_dims = token_dims
        stages = []
        in_dims = (3, *token_dims)
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim = token_dims[stage]
            reduction = _reduction_cell(
                in_dims[stage],
                embed_dims[stage],
                dim,
                reduction_heads[stage],
                groups=reduction_groups[stage],
                stage=stage,
            )
            normal_cell = WindowNormalCell if stage in WINDOW_STAGES else NormalCell
            cells = [
                normal_cell(
                    dim,
                    heads[stage],
                    mlp_ratio=mlp_ratio,
                    convolutions=convolutions(dim, int(dim * mlp_ratio), dim, dim, groups=groups[stage]),
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(reduction, cells))
        super().__init__(stages, dim=token_dims[-1], num_classes=num_classes)


class ViTAEv2Backbone(Backbone):
    """Feature maps of a ViTAEv2: the output of each stage, without a norm, as in the authors' detectors."""

    def __init__(self, network: ViTAEv2) -> None:
        super().__init__()
        self.layers = network.layers
        self.channels = network.token_dims

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(stage_maps(self.layers, x))


def _reduction_cell(in_dim: int, embed_dim: int, dim: int, heads: int, *, groups: int, stage: int) -> ReductionCell:
    """Return the first cell of a stage.

    Its attention works in windows without a shortcut, or on the whole map with its values as the shortcut.
    """
    check_heads(dim, heads)
    pyramid = Pyramid(in_dim, embed_dim, stage=stage)
    windows = stage in WINDOW_STAGES
    cell = WindowReductionCell if windows else ReductionCell
    attention = (Attention if windows else ValueSkipAttention)(pyramid.out_dim, heads, out=dim, qkv_bias=windows)
    parallel = convolutions(in_dim, embed_dim, embed_dim, dim, groups=groups, strides=reduction_strides(stage))
    return cell(pyramid, convolutions=parallel, attn=TokenTransformer(attention, pyramid.out_dim, dim))


def drop_position_indices(weights: StateDict) -> StateDict:
    """Remove the indices of a relative position bias, which no published model uses, from an official state dict."""
    return {key: value for key, value in weights.items() if not key.endswith("relative_position_index")}


_CODE = "ViTAE-Transformer/ViTAE-Transformer README"

# name: ((embed_dims, token_dims, depths, heads, reduction_heads, drop_path_rate), the paper's figures).
_Dims = tuple[int, int, int, int]
_VARIANTS: dict[str, tuple[tuple[_Dims, _Dims, _Dims, _Dims, _Dims, float], PaperFigures]] = {
    "vitaev2_s": (
        ((64, 64, 128, 256), (64, 128, 256, 512), (2, 2, 8, 2), (1, 2, 4, 8), (1, 1, 2, 4), 0.1),
        PaperFigures(top1=82.6, params_m=19.2, macs_g=5.7, source=_CODE),
    ),
    "vitaev2_48m": (
        ((64, 64, 192, 384), (96, 192, 384, 768), (2, 2, 11, 2), (1, 2, 4, 8), (1, 1, 2, 4), 0.25),
        PaperFigures(top1=83.8, params_m=48.5, macs_g=13.3, source=_CODE),
    ),
    "vitaev2_b": (
        ((96, 96, 256, 512), (128, 256, 512, 1024), (2, 2, 12, 2), (1, 4, 8, 16), (1, 1, 4, 8), 0.4),
        PaperFigures(top1=84.6, params_m=89.7, macs_g=24.3, source=_CODE),
    ),
}

SPECS = tuple(
    ModelSpec(
        name=name,
        family="vitae",
        factory=ViTAEv2,
        options={
            "embed_dims": embed_dims,
            "token_dims": token_dims,
            "depths": depths,
            "heads": heads,
            "reduction_heads": reduction_heads,
            "drop_path_rate": rate,
        },
        preprocessing=PREPROCESSING,
        paper=paper,
        backbone=ViTAEv2Backbone,
        convert_state_dict=drop_position_indices,
        published=PublishedWeights(where=f"on OneDrive, linked in the README of {README}"),
    )
    for name, ((embed_dims, token_dims, depths, heads, reduction_heads, rate), paper) in _VARIANTS.items()
)
