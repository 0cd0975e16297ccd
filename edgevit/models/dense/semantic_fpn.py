"""Semantic FPN: "Panoptic Feature Pyramid Networks" (Kirillov et al., CVPR 2019, arXiv 1901.02446, section 3).

A light segmenter: each level of a feature pyramid is convolved and upsampled to stride 4, the levels are added, and a
1x1 convolution predicts the classes. `SemanticFPN` has mmseg's structure and names, `SemanticBranch` is the same head
in Detectron2's (see vt_fpn.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import unknown_name
from edgevit.models.dense.conv_module import conv_module
from edgevit.models.dense.fpn import FPN
from edgevit.models.dense.segmenter import Segmenter, SegmenterOutputs
from edgevit.models.features import Backbone

Norm: TypeAlias = Literal["GN", "BN"]
NORMS = ("GN", "BN")
GROUPS = 32  # of a GroupNorm
UPSAMPLINGS = (0, 1, 2, 3)  # of each level, by 2, from its stride to stride 4


class Upsample(nn.Module):
    """Double both sides by bilinear interpolation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def level_head(upsamplings: int, convolution: Callable[[int], nn.Module]) -> nn.Sequential:
    """Return one convolution and one upsampling for each halving of the level; one convolution for the finest.

    `convolution` creates the one of an index.
    """
    layers = nn.Sequential()
    for index in range(max(1, upsamplings)):
        layers.append(convolution(index))
        if upsamplings:
            layers.append(Upsample())
    return layers


def add(levels: Sequence[Tensor]) -> Tensor:
    """Return the sum of maps of one size, from the finest on."""
    total = levels[0]
    for level in levels[1:]:
        total = total + level
    return total


class FPNHead(nn.Module):
    """mmseg's FPNHead: levels p2..p5 (N, in, H/s, W/s) -> logits (N, K, H/4, W/4)."""

    def __init__(self, in_width: int, width: int, num_classes: int) -> None:
        super().__init__()

        def convolution(index: int) -> nn.Module:
            return conv_module(width if index else in_width, width, 3, norm=True, relu=True)

        self.scale_heads = nn.ModuleList(level_head(count, convolution) for count in UPSAMPLINGS)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return self.conv_seg(add([head(level) for head, level in zip(self.scale_heads, levels, strict=True)]))


class NormedConv(nn.Conv2d):
    """Detectron2's convolution: it has no bias, and its norm is its own submodule `norm`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, norm: Norm = "BN", relu: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        if norm not in NORMS:
            raise unknown_name("norm", norm, NORMS)
        self.norm = nn.BatchNorm2d(out_channels) if norm == "BN" else nn.GroupNorm(GROUPS, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(super().forward(x))
        return F.relu(x) if self.relu else x


class SemanticBranch(nn.Module):
    """Detectron2's SemSegFPNHead: levels p2..p5 (N, in, H/s, W/s) -> logits (N, K, H/4, W/4)."""

    def __init__(self, in_width: int, width: int, num_classes: int, *, norm: Norm = "GN") -> None:
        super().__init__()

        def convolution(index: int) -> nn.Module:
            return NormedConv(width if index else in_width, width, 3, norm=norm)

        self.p2, self.p3, self.p4, self.p5 = (level_head(count, convolution) for count in UPSAMPLINGS)
        self.predictor = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        heads = (self.p2, self.p3, self.p4, self.p5)
        return self.predictor(add([head(level) for head, level in zip(heads, levels, strict=True)]))


class SemanticFPN(Segmenter):
    """Semantic FPN on a backbone, by mmseg's names. `fpn_width` is that of the pyramid, `head_width` of the head."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        img_size: tuple[int, int],
        num_classes: int = 150,
        fpn_width: int = 256,
        head_width: int = 128,
        outputs: SegmenterOutputs = "logits",
    ) -> None:
        super().__init__(img_size=img_size, num_classes=num_classes, outputs=outputs)
        self.backbone = backbone
        self.neck = FPN(backbone.channels, fpn_width)
        self.decode_head = FPNHead(fpn_width, head_width, num_classes)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.feature_maps(x)

    def logits(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.decode_head(self.neck(maps))
