"""Feature pyramid network, "Feature Pyramid Networks for Object Detection" (Lin et al., CVPR 2017, arXiv 1612.03144).

Structure and parameter names are those of mmdet's and mmseg's FPN: neither norms nor activations, and no ReLU between
p6 and p7, where torchvision and Detectron2 have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import unknown_name
from edgevit.models.dense.conv_module import conv_module

ExtraConvs: TypeAlias = Literal["on_input", "on_output"]
EXTRA_CONVS = ("on_input", "on_output")


def top_down(laterals: Sequence[Tensor], mode: str = "nearest") -> list[Tensor]:
    """Add to each map the sum of the coarser ones, resized to it. Maps are ordered from fine to coarse."""
    sums = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        sums.insert(0, lateral + F.interpolate(sums[0], lateral.shape[2:], mode=mode))
    return sums


class FPN(nn.Module):
    """Pyramid of maps with `width` channels from maps with `in_channels`, fine to coarse.

    `extra` more levels follow, each halved by a 3x3 convolution: the first reads the coarsest input ("on_input") or the
    coarsest output ("on_output"), the others the level before. Raises UsageError for another `extra_convs`.
    """

    def __init__(
        self, in_channels: Sequence[int], width: int, *, extra: int = 0, extra_convs: ExtraConvs = "on_input"
    ) -> None:
        super().__init__()
        if extra_convs not in EXTRA_CONVS:
            raise unknown_name("extra_convs", extra_convs, EXTRA_CONVS)
        self.on_input = extra_convs == "on_input"
        self.lateral_convs = nn.ModuleList(conv_module(channels, width, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(conv_module(width, width, 3) for _ in in_channels)
        for level in range(extra):
            channels = in_channels[-1] if level == 0 and self.on_input else width
            self.fpn_convs.append(conv_module(channels, width, 3, stride=2))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        laterals = [conv(each) for conv, each in zip(self.lateral_convs, maps, strict=True)]
        levels = [conv(each) for conv, each in zip(self.fpn_convs, top_down(laterals), strict=False)]
        for level, conv in enumerate(self.fpn_convs[len(maps) :]):
            levels.append(conv(maps[-1] if level == 0 and self.on_input else levels[-1]))
        return tuple(levels)
