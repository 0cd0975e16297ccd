"""A convolution with its norm and activation, by the names of mmcv's ConvModule: `conv`, `bn`."""

from __future__ import annotations

from torch import nn


def conv_module(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, norm: bool = False,
                relu: bool = False) -> nn.Sequential:  # fmt: skip
    """Return a convolution that keeps the size (at stride 1), then BatchNorm if `norm`, then ReLU if `relu`.

    With a norm the convolution has no bias.
    """
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=not norm))
    if norm:
        layers.add_module("bn", nn.BatchNorm2d(out_channels))
    if relu:
        layers.add_module("activate", nn.ReLU())
    return layers
