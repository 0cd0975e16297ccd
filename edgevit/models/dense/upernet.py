"""UPerNet: "Unified Perceptual Parsing for Scene Understanding" (Xiao et al., ECCV 2018, arXiv 1807.10221).

The segmenter of the papers on ShiftViT, Swin and ViTAEv2: pyramid pooling of c5, a feature pyramid, and a prediction
from all levels together. Structure and parameter names are mmseg's. Its head costs several times as much as a small
backbone: 211 G MACs at 512 x 512 with 512 channels, of which half are the convolution over the four levels together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.models.dense.conv_module import conv_module
from edgevit.models.dense.fpn import top_down
from edgevit.models.dense.segmenter import Segmenter, SegmenterOutputs
from edgevit.models.features import Backbone

POOLED_SIDES = (1, 2, 3, 6)


def pooling_matrix(size: int, pooled: int) -> Tensor:
    """Return the matrix (pooled, size) of adaptive average pooling along one axis.

    Row i averages the elements from floor(i * size / pooled) to ceil((i + 1) * size / pooled), exclusive.
    """
    matrix = torch.zeros(pooled, size, dtype=torch.float64)
    for row in range(pooled):
        start, end = row * size // pooled, -(-(row + 1) * size // pooled)
        matrix[row, start:end] = 1 / (end - start)
    return matrix.float()


class AdaptivePool(nn.Module):
    """Average pooling of maps of one size to `side` x `side` as two matmuls with constants, for any size.

    Exporters and engines refuse or approximate adaptive pooling if the size is no multiple of the side, and at an image
    of 512 x 512 none of UPerNet's maps is one of 3 or 6.
    """

    def __init__(self, size: tuple[int, int], side: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", pooling_matrix(size[0], side), persistent=False)
        self.register_buffer("columns", pooling_matrix(size[1], side).t().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)  # (N, C, H, W) -> (N, C, H, side) -> (N, C, side, side)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map to the size of another by bilinear interpolation."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """mmseg's UPerHead: c2..c5 -> logits (N, K, H/4, W/4). `size` is that of c5."""

    def __init__(self, in_channels: Sequence[int], width: int, num_classes: int, *, size: tuple[int, int]) -> None:
        super().__init__()
        *finer, last = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AdaptivePool(size, side), conv_module(last, width, 1, norm=True, relu=True))
            for side in POOLED_SIDES
        )
        pooled = last + len(POOLED_SIDES) * width
        self.bottleneck = conv_module(pooled, width, 3, norm=True, relu=True)
        self.lateral_convs = nn.ModuleList(conv_module(each, width, 1, norm=True, relu=True) for each in finer)
        self.fpn_convs = nn.ModuleList(conv_module(width, width, 3, norm=True, relu=True) for _ in finer)
        self.fpn_bottleneck = conv_module(len(in_channels) * width, width, 3, norm=True, relu=True)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, last = maps
        laterals = [conv(each) for conv, each in zip(self.lateral_convs, finer, strict=True)]
        pooled = [last, *(resize(pool(last), last) for pool in self.psp_modules)]
        laterals.append(self.bottleneck(torch.cat(pooled, 1)))
        *levels, coarsest = top_down(laterals, "bilinear")
        levels = [conv(each) for conv, each in zip(self.fpn_convs, levels, strict=True)]
        levels = [levels[0], *(resize(each, levels[0]) for each in (*levels[1:], coarsest))]
        return self.conv_seg(self.fpn_bottleneck(torch.cat(levels, 1)))


class UPerNet(Segmenter):
    """UPerNet on a backbone, by mmseg's names, without its auxiliary head, which is used in training only."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        img_size: tuple[int, int],
        num_classes: int = 150,
        head_width: int = 512,
        outputs: SegmenterOutputs = "logits",
    ) -> None:
        super().__init__(img_size=img_size, num_classes=num_classes, outputs=outputs)
        self.backbone = backbone
        size = (img_size[0] // 32, img_size[1] // 32)
        self.decode_head = UPerHead(backbone.channels, head_width, num_classes, size=size)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.feature_maps(x)

    def logits(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.decode_head(maps)
