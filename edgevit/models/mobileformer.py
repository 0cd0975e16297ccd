"""Mobile-Former: "Mobile-Former: Bridging MobileNet and Transformer" (Chen et al., CVPR 2022, arXiv 2108.05895).

An inverted-bottleneck network ("Mobile") in parallel with a transformer over a few learned tokens ("Former"). In every
block two lightweight attentions ("bridges") connect them: pixels to tokens before the convolutions, tokens to pixels
after them. Parameter names are the authors'. If the paper and the code differ, this implementation follows the
published checkpoints: pixels to tokens and the Former have no projections of keys and values, the Former has four heads
and the bridges have two, a gate scales what the tokens read from the pixels, activations other than the dynamic ReLU
are ReLU6, and the classifier reads the tokens after one more bridge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError, unknown_name
from edgevit.images import Preprocessing
from edgevit.models.downloads import PublishedWeights
from edgevit.models.features import Backbone
from edgevit.models.layers import attend, merge_heads, split_heads
from edgevit.models.spec import ModelSpec, PaperFigures

# Whether a block halves or keeps the resolution, the expansion of its convolutions, and its output channels.
BlockPlan: TypeAlias = tuple[Literal["down", "keep"], int, int]

BRIDGE_HEADS = 2
FORMER_HEADS = 4
SECOND_EXPANSION = 4  # of the second half of a DownBlock


class ChannelShuffle(nn.Module):
    """Interleave the channels of `groups` groups, so that each group of the next convolution reads all of them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        x = x.reshape(-1, self.groups, channels // self.groups, height * width)  # (N, G, C/G, HW)
        return x.transpose(1, 2).reshape(-1, channels, height, width)


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, shuffle: int = 1
) -> nn.Sequential:
    """Return a convolution and its BatchNorm, then a channel shuffle of `shuffle` groups if that is more than 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, ChannelShuffle(shuffle)) if shuffle > 1 else nn.Sequential(*layers)


def depthwise_norm(in_channels: int, out_channels: int, *, stride: int, shuffle: bool) -> nn.Sequential:
    """Return a 3x3 convolution with BatchNorm that computes out / in channels from each channel.

    Set `shuffle` if a grouped convolution follows.
    """
    return conv_norm(
        in_channels, out_channels, 3, stride=stride, groups=in_channels, shuffle=in_channels if shuffle else 1
    )


class LocalToGlobal(nn.Module):
    """Pixels to tokens: z = LN(z + proj(gate * attention)), with q = Wq z and the feature map as k and v.

    The gate 2 h_sigmoid(W z), in [0, 2], scales each channel of each token; the paper's equation 1 has no gate.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.scale = (channels // BRIDGE_HEADS) ** -0.5
        self.alpha = nn.Sequential(nn.Linear(dim, channels), nn.Hardsigmoid())
        self.q = nn.Linear(dim, channels)
        self.proj = nn.Linear(channels, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (N, M, d) and attention logits (N, heads, M, HW) from x (N, C, H, W) and tokens z (N, M, d)."""
        _, channels, height, width = x.shape
        pixels = x.reshape(-1, BRIDGE_HEADS, channels // BRIDGE_HEADS, height * width)  # (N, h, C/h, HW)
        logits = (split_heads(self.q(z), BRIDGE_HEADS) * self.scale) @ pixels  # (N, h, M, HW)
        seen = merge_heads(logits.softmax(-1) @ pixels.transpose(2, 3))  # (N, M, C)
        return self.layer_norm(z + self.proj(seen * (2 * self.alpha(z)))), logits


class Former(nn.Module):
    """Transformer over the tokens (N, M, d): attention with q = Wq z and k = v = z, then an MLP.

    The norms follow the shortcuts (post-norm).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = (dim // FORMER_HEADS) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.channel_mlp = nn.Linear(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, z: Tensor) -> Tensor:
        q, kv = split_heads(self.q(z), FORMER_HEADS), split_heads(z, FORMER_HEADS)
        z = self.layer_norm(z + self.channel_mlp(merge_heads(attend(q, kv, kv, scale=self.scale))))
        return self.ffn_norm(z + self.ffn(z))


class GlobalToLocal(nn.Module):
    """Tokens to pixels: x + attention, with the feature map as q, k = Wk z, v = Wv z. (Equation 2)"""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.scale = (channels // BRIDGE_HEADS) ** -0.5
        self.k = nn.Linear(dim, channels)
        self.proj = nn.Linear(dim, channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        pixels = x.reshape(-1, BRIDGE_HEADS, channels // BRIDGE_HEADS, height * width)  # (N, h, C/h, HW)
        k, v = (split_heads(part, BRIDGE_HEADS) for part in (self.k(z), self.proj(z)))  # (N, h, M, C/h)
        # Computed transposed: the pixels keep their layout, and only the few tokens are transposed.
        weights = ((k * self.scale) @ pixels).softmax(2)  # (N, h, M, HW)
        return x + (v.transpose(2, 3) @ weights).reshape(-1, channels, height, width)


class DynamicReLU(nn.Module):
    """max(a1 x, a2 x) for each channel, with slopes a1 in [0, 2] and a2 in [-1, 1] computed from a token.

    (Dynamic ReLU, Chen et al., arXiv 2003.10027, with two slopes and no intercepts.) a1 can be less than a2, so the
    sign of x alone does not determine the slope.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.hyper = nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, 2 * channels))

    def forward(self, x: Tensor, z: Tensor, share: Tensor | None = None) -> Tensor:
        """Apply the slopes computed from tokens z (N, M, d) to x (N, C, H, W).

        `share` (N, M, H, W) holds the weights of the tokens' slopes at each pixel; they sum to 1 over the tokens. If it
        is None, all pixels use the slopes of the first token.
        """
        if share is None:
            slopes = F.hardsigmoid(self.hyper(z[:, 0]))[:, :, None, None]  # (N, 2C, 1, 1)
        else:
            slopes = F.hardsigmoid(self.hyper(z)).transpose(1, 2) @ share.flatten(2)  # (N, 2C, HW)
            slopes = slopes.reshape(-1, 2 * self.channels, x.shape[2], x.shape[3])  # (N, 2C, H, W)
        a1, a2 = slopes.chunk(2, dim=1)
        return torch.maximum(x * (2 * a1), x * (2 * a2 - 1))


def token_shares(logits: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Convert attention logits (N, heads, M, HW) to each pixel's weights of the tokens (N, M, H / s, W / s)."""
    mean = logits.mean(1).reshape(-1, logits.shape[2], height, width)  # (N, M, H, W)
    if stride == 2:
        # Adaptive pooling to half the size, in a form that exports: windows of 2 pixels along even sides, 3 along odd.
        odd = (height % 2, width % 2)
        mean = F.avg_pool2d(mean, (2 + odd[0], 2 + odd[1]), 2, odd, count_include_pad=False)
    return mean.softmax(1)


class Block(nn.Module):
    """Pixels to tokens, Former, convolutions with activations computed from tokens, tokens to pixels. (Figure 3)"""

    stride: int

    def __init__(self, in_channels: int, out_channels: int, dim: int, *, spatial_relu: bool) -> None:
        super().__init__()
        self.spatial_relu = spatial_relu
        self.local_global = LocalToGlobal(in_channels, dim)
        self.global_block = Former(dim)
        self.global_local = GlobalToLocal(dim, out_channels)

    def mobile(self, x: Tensor, z: Tensor, share: Tensor | None) -> Tensor:
        """Apply the convolutions, (N, C, H, W) -> (N, C', H / stride, W / stride)."""
        raise NotImplementedError

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        z, logits = self.local_global(x, z)
        z = self.global_block(z)
        share = token_shares(logits, x.shape[2], x.shape[3], self.stride) if self.spatial_relu else None
        return self.global_local(self.mobile(x, z, share), z), z


class DownBlock(Block):
    """Halve the resolution: a depthwise and a pointwise convolution, then another such pair with a shortcut."""

    stride = 2

    def __init__(
        self, in_channels: int, out_channels: int, dim: int, *, expand: int, groups: int, spatial_relu: bool
    ) -> None:
        super().__init__(in_channels, out_channels, dim, spatial_relu=spatial_relu)
        first, second = expand * in_channels, SECOND_EXPANSION * out_channels
        self.conv1 = depthwise_norm(in_channels, first, stride=2, shuffle=groups > 1)
        self.hyper1 = DynamicReLU(dim, first)
        self.conv2 = conv_norm(first, out_channels, 1, groups=groups)
        self.conv3 = depthwise_norm(out_channels, second, stride=1, shuffle=groups > 1)
        self.hyper3 = DynamicReLU(dim, second)
        self.conv4 = conv_norm(second, out_channels, 1, groups=groups)

    def mobile(self, x: Tensor, z: Tensor, share: Tensor | None) -> Tensor:
        x = self.conv2(self.hyper1(self.conv1(x), z, share))  # (N, C', H/2, W/2)
        return x + self.conv4(self.hyper3(self.conv3(x), z, share))


class KeepBlock(Block):
    """Keep the resolution: MobileNetV2's inverted bottleneck."""

    stride = 1

    def __init__(
        self, in_channels: int, out_channels: int, dim: int, *, expand: int, groups: int, spatial_relu: bool
    ) -> None:
        super().__init__(in_channels, out_channels, dim, spatial_relu=spatial_relu)
        hidden = expand * in_channels
        self.has_shortcut = in_channels == out_channels
        self.conv1 = conv_norm(in_channels, hidden, 1, groups=groups, shuffle=groups)
        self.hyper1 = DynamicReLU(dim, hidden)
        self.conv2 = conv_norm(hidden, hidden, 3, groups=hidden)
        self.hyper2 = DynamicReLU(dim, hidden)
        self.conv3 = conv_norm(hidden, out_channels, 1, groups=groups, shuffle=groups)

    def mobile(self, x: Tensor, z: Tensor, share: Tensor | None) -> Tensor:
        y = self.hyper1(self.conv1(x), z, share)  # (N, eC, H, W)
        y = self.conv3(self.hyper2(self.conv2(y), z, share))  # (N, C', H, W)
        return x + y if self.has_shortcut else y


BLOCKS = {"down": DownBlock, "keep": KeepBlock}


class LiteBlock(nn.Module):
    """First block, without tokens: depthwise convolution, ReLU6, pointwise; a shortcut if the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, *, expand: int, stride: int, groups: int) -> None:
        super().__init__()
        hidden = expand * in_channels
        self.stride = stride
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, stride, 1, groups=in_channels, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            ChannelShuffle(in_channels) if groups > 1 else nn.Identity(),
            nn.Conv2d(hidden, out_channels, 1, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class Classifier(nn.Module):
    """Pooled pixels concatenated with the first token, then two linear layers."""

    def __init__(
        self, channels: int, dim: int, *, hidden: int, groups: int, drop_rate: float, num_classes: int
    ) -> None:
        super().__init__()
        wide = 6 * channels
        self.conv = nn.Sequential(
            ChannelShuffle(groups) if groups > 1 else nn.Identity(),
            nn.Conv2d(channels, wide, 1, groups=groups, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
        )
        self.fc = nn.Sequential(nn.Linear(wide + dim, hidden), nn.BatchNorm1d(hidden), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        pooled = F.hardswish(self.conv(x).mean((2, 3)))  # (N, 6C)
        return self.classifier(self.fc(torch.cat((pooled, z[:, 0]), dim=1)))


class MobileFormer(nn.Module):
    """The Mobile-Former network, for images of any size.

    `lite` is the first block as (expansion, channels, stride); `blocks` are the others as (kind, expansion, channels):
    "down" halves the resolution, "keep" keeps it. `groups` is the number of groups of all pointwise convolutions.

    With `spatial_relu` each pixel mixes the dynamic ReLU slopes of all tokens, weighted by the attention of the block,
    instead of using those of the first token: theta_i = sum_j alpha_ij f(z_j), as in the paper's detection backbones.
    The parameters are the same. No published classification checkpoint was trained with it, and the authors' detection
    code was never released: this option is derived from the paper.

    Raises UsageError for an unknown kind of block, or if a width is not divisible by the heads or groups.
    """

    def __init__(
        self,
        *,
        token_count: int,
        token_dim: int,
        stem: int,
        lite: tuple[int, int, int],
        blocks: tuple[BlockPlan, ...],
        fc_dim: int,
        groups: int = 1,
        spatial_relu: bool = False,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        lite_expand, lite_channels, lite_stride = lite
        self.widths = (lite_channels, *(width for _, _, width in blocks))  # of each block's output
        _check_divisibility(token_dim, self.widths, groups)
        self.tokens = nn.Embedding(token_count, token_dim)
        self.stem = nn.Sequential(*conv_norm(3, stem, 3, stride=2), nn.ReLU6())
        self.features = nn.ModuleList(
            [LiteBlock(stem, lite_channels, expand=lite_expand, stride=lite_stride, groups=groups)]
        )
        channels = lite_channels
        for kind, expand, width in blocks:
            if kind not in BLOCKS:
                raise unknown_name("kind of block", kind, BLOCKS)
            self.features.append(
                BLOCKS[kind](channels, width, token_dim, expand=expand, groups=groups, spatial_relu=spatial_relu)
            )
            channels = width
        self.local_global = LocalToGlobal(channels, token_dim)
        self.classifier = Classifier(
            channels, token_dim, hidden=fc_dim, groups=groups, drop_rate=drop_rate, num_classes=num_classes
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features[0](self.stem(x))  # (N, C, H/2, W/2)
        z = self.tokens.weight[None]  # (1, M, d): one copy for all images, broadcast by the first block
        for block in self.features[1:]:
            x, z = block(x, z)  # (N, C, H/32, W/32) and (N, M, d) in the end
        z, _ = self.local_global(x, z)
        return self.classifier(x, z)


class MobileFormerBackbone(Backbone):
    """Feature maps of a Mobile-Former: the last map of each resolution, without a norm, as in the authors' code.

    The tokens of the last block and the layers after it do no work for the maps and are left out. Detectors use
    `spatial_relu`, see MobileFormer; the same weights fit both.
    """

    def __init__(self, network: MobileFormer) -> None:
        super().__init__()
        self.tokens = network.tokens
        self.stem = network.stem
        self.features = network.features
        self.outputs = _last_of_each_resolution(network.features)
        self.channels = tuple(network.widths[index] for index in self.outputs)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        x = self.features[0](self.stem(x))
        z = self.tokens.weight[None]  # (1, M, d)
        for index, block in enumerate(self.features[1:], 1):
            x, z = block(x, z)
            if index in self.outputs:
                maps.append(x)
        return tuple(maps)


def _last_of_each_resolution(blocks: nn.ModuleList) -> tuple[int, ...]:
    """Return the indices of the last block of each resolution, from 1/4 of the image's on."""
    strides = [block.stride for block in blocks if isinstance(block, LiteBlock | Block)]
    total = [2 * math.prod(strides[: index + 1]) for index in range(len(strides))]  # 2: that of the stem
    return tuple(index for index, stride in enumerate(total) if stride >= 4 and stride not in total[index + 1 :])


def _check_divisibility(token_dim: int, widths: tuple[int, ...], groups: int) -> None:
    if token_dim % FORMER_HEADS:
        raise UsageError(f"token_dim must be a multiple of {FORMER_HEADS} (the heads of the Former), got {token_dim}")
    for width in widths:
        if width % BRIDGE_HEADS or width % groups:
            raise UsageError(
                f"channels must be a multiple of {BRIDGE_HEADS} (the heads of the bridges) and of groups ({groups}), "
                f"got {width}"
            )


def _initialize(model: nn.Module) -> None:
    """Initialize as the authors do: He's normal for convolutions, N(0, 0.01) for linear layers.

    He's normal uses the fan-out without dividing it by the groups.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            nn.init.normal_(layer.weight, std=(2 / (height * width * layer.out_channels)) ** 0.5)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


_BLOCKS_508M: tuple[BlockPlan, ...] = (
    ("down", 6, 40),
    ("keep", 3, 40),
    ("down", 6, 72),
    ("keep", 3, 72),
    ("down", 6, 128),
    ("keep", 4, 128),
    ("keep", 6, 176),
    ("keep", 6, 176),
    ("down", 6, 240),
    ("keep", 6, 240),
    ("keep", 6, 240),
)
_BLOCKS_294M: tuple[BlockPlan, ...] = (
    ("down", 6, 24),
    ("keep", 4, 24),
    ("down", 6, 48),
    ("keep", 4, 48),
    ("down", 6, 96),
    ("keep", 4, 96),
    ("keep", 6, 128),
    ("keep", 6, 128),
    ("down", 6, 192),
    ("keep", 6, 192),
    ("keep", 6, 192),
)
_BLOCKS_214M: tuple[BlockPlan, ...] = (
    ("down", 6, 20),
    ("keep", 3, 20),
    ("down", 6, 40),
    ("keep", 4, 40),
    ("down", 6, 80),
    ("keep", 4, 80),
    ("keep", 6, 112),
    ("keep", 6, 112),
    ("down", 6, 160),
    ("keep", 6, 160),
    ("keep", 6, 160),
)
_BLOCKS_151M: tuple[BlockPlan, ...] = (
    ("down", 6, 16),
    ("keep", 3, 16),
    ("down", 6, 32),
    ("keep", 3, 32),
    ("down", 6, 64),
    ("keep", 4, 64),
    ("keep", 6, 88),
    ("keep", 6, 88),
    ("down", 6, 128),
    ("keep", 6, 128),
    ("keep", 6, 128),
)
_BLOCKS_96M: tuple[BlockPlan, ...] = (
    ("down", 6, 16),
    ("down", 6, 32),
    ("keep", 3, 32),
    ("down", 6, 64),
    ("keep", 4, 64),
    ("keep", 6, 88),
    ("down", 6, 128),
    ("keep", 6, 128),
)
_BLOCKS_52M: tuple[BlockPlan, ...] = (
    ("keep", 3, 12),
    ("down", 6, 24),
    ("keep", 3, 24),
    ("down", 6, 48),
    ("keep", 4, 48),
    ("keep", 6, 64),
    ("down", 6, 96),
    ("keep", 6, 96),
)


def _options(
    tokens: tuple[int, int],
    stem: int,
    lite: tuple[int, int, int],
    blocks: tuple[BlockPlan, ...],
    fc_dim: int,
    groups: int = 1,
) -> Mapping[str, Any]:
    return {
        "token_count": tokens[0],
        "token_dim": tokens[1],
        "stem": stem,
        "lite": lite,
        "blocks": blocks,
        "fc_dim": fc_dim,
        "groups": groups,
    }


def _paper(top1: float, params_m: float, macs_g: float) -> PaperFigures:
    return PaperFigures(top1=top1, params_m=params_m, macs_g=macs_g, source="AAboys/MobileFormer README")


# name: ((tokens, stem, lite, blocks, fc_dim, groups), the paper's figures). The paper's MACs include norms and
# activations.
_VARIANTS: dict[str, tuple[Mapping[str, Any], PaperFigures]] = {
    "mobileformer_26m": (_options((3, 128), 8, (3, 12, 2), _BLOCKS_52M, 1024, groups=4), _paper(64.0, 3.2, 0.026)),
    "mobileformer_52m": (_options((3, 128), 8, (3, 12, 2), _BLOCKS_52M, 1024), _paper(68.7, 3.5, 0.052)),
    "mobileformer_96m": (_options((4, 128), 12, (2, 12, 1), _BLOCKS_96M, 1280), _paper(72.8, 4.6, 0.096)),
    "mobileformer_151m": (_options((6, 192), 12, (2, 12, 1), _BLOCKS_151M, 1280), _paper(75.2, 7.6, 0.151)),
    "mobileformer_214m": (_options((6, 192), 12, (2, 12, 1), _BLOCKS_214M, 1600), _paper(76.7, 9.4, 0.214)),
    "mobileformer_294m": (_options((6, 192), 16, (2, 16, 1), _BLOCKS_294M, 1920), _paper(77.9, 11.4, 0.294)),
    "mobileformer_508m": (_options((6, 192), 24, (2, 24, 1), _BLOCKS_508M, 1920), _paper(79.3, 14.0, 0.508)),
}

SPECS = tuple(
    ModelSpec(
        name=name,
        family="mobileformer",
        factory=MobileFormer,
        options=options,
        preprocessing=Preprocessing(interpolation="bilinear"),
        paper=paper,
        backbone=MobileFormerBackbone,
        published=PublishedWeights(
            where="on Google Drive, linked in the README of https://github.com/AAboys/MobileFormer",
            filename=f"{name.replace('mobileformer_', 'mobile-former-')}.pth.tar",
        ),
    )
    for name, (options, paper) in _VARIANTS.items()
)
