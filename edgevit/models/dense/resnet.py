"""ResNet as a backbone: "Deep Residual Learning for Image Recognition" (He et al., CVPR 2016, arXiv 1512.03385).

Structure and parameter names are Detectron2's. The stride of a stage is in the first 1x1 convolution of its first
block, as in the original weights; torchvision's networks have it in the 3x3 convolution (`stride_in_1x1=False`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.models.dense.semantic_fpn import NormedConv
from edgevit.models.features import Backbone

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CHANNELS = (256, 512, 1024, 2048)


class Stem(nn.Module):
    """7x7 convolution and max pooling: images (N, 3, H, W) -> (N, 64, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = NormedConv(3, 64, 7, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), 3, 2, 1)


class BottleneckBlock(nn.Module):
    """Residual block with a 1x1, a 3x3 and a 1x1 convolution; the first and the last change the width by 4."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        width = channels // 4
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        changes = in_channels != channels
        self.shortcut = NormedConv(in_channels, channels, 1, stride=stride, relu=False) if changes else nn.Identity()
        self.conv1 = NormedConv(in_channels, width, 1, stride=first)
        self.conv2 = NormedConv(width, width, 3, stride=second)
        self.conv3 = NormedConv(width, channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


def stage(in_channels: int, channels: int, depth: int, *, stride: int, stride_in_1x1: bool) -> nn.Sequential:
    """Return `depth` residual blocks, the first with the stride."""
    first = BottleneckBlock(in_channels, channels, stride=stride, stride_in_1x1=stride_in_1x1)
    rest = (BottleneckBlock(channels, channels, stride=1, stride_in_1x1=stride_in_1x1) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


class ResNet(Backbone):
    """ResNet-50 or -101 without its classifier: images to c2..c5 with 256 to 2048 channels."""

    channels = CHANNELS

    def __init__(self, depth: int, *, stride_in_1x1: bool = True) -> None:
        super().__init__()
        depths = DEPTHS[depth]
        self.stem = Stem()
        self.res2 = stage(64, CHANNELS[0], depths[0], stride=1, stride_in_1x1=stride_in_1x1)
        self.res3 = stage(CHANNELS[0], CHANNELS[1], depths[1], stride=2, stride_in_1x1=stride_in_1x1)
        self.res4 = stage(CHANNELS[1], CHANNELS[2], depths[2], stride=2, stride_in_1x1=stride_in_1x1)
        self.res5 = stage(CHANNELS[2], CHANNELS[3], depths[3], stride=2, stride_in_1x1=stride_in_1x1)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        c2 = self.res2(self.stem(x))
        c3 = self.res3(c2)
        c4 = self.res4(c3)
        return c2, c3, c4, self.res5(c4)
