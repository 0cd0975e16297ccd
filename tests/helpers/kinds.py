"""Small modules of the kinds that third-party packages hold, each with an idiom that once broke an export.

They stand for architectures of timm, torchvision and transformers, which are no dependency of the tests:
`tests.tools.breadth` exports the architectures themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, SIDE = 16, 2, 16  # channels, heads of attention, pixels of the input


def stem(stride: int = 4) -> nn.Conv2d:
    return nn.Conv2d(3, WIDTH, stride, stride=stride)


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


class ResNet(nn.Module):
    """Batch norms and a strided shortcut, as in torchvision's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = stem(2), nn.BatchNorm2d(WIDTH)
        self.conv = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(True))
        self.shortcut, self.head = nn.Conv2d(WIDTH, WIDTH, 1, 2), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu_()
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.conv(x) + self.shortcut(x), 1), 1))


class InvertedResidual(nn.Module):
    """A depthwise convolution, squeeze and excitation, hard activations and "same" padding, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = stem(2), nn.Conv2d(WIDTH, WIDTH, 3, 2, groups=WIDTH)
        self.reduce, self.expand, self.head = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(4, WIDTH, 1), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem(x))
        height, width = x.shape[-2:]
        x = F.relu6(self.depthwise(F.pad(x, (0, width % 2 + 1, 0, height % 2 + 1))))
        gate = F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.head((x * gate).mean((2, 3)))


class ViT(nn.Module):
    """A class token, a position table and fused attention, as in timm's VisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cls, self.pos = (
            stem(),
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.Parameter(torch.ones(1, 17, 1)),
        )
        self.norm, self.qkv, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = tokens(self.stem(x))
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.head(x[:, 0])


class Swin(nn.Module):
    """Shifted windows with a learned bias, as in Swin and BEiT; its buffer has the name of an operator."""

    index: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = stem(), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        steps = torch.arange(4)
        row, column = steps // 2, steps % 2
        self.register_buffer("index", 3 * (row[:, None] - row + 1) + column[:, None] - column + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, HEADS).permute(2, 0, 1).unsqueeze(0)
        x = ((q @ k.transpose(-2, -1)) + bias).softmax(-1) @ v
        return self.head(x.transpose(1, 2).reshape(b, -1, c).mean(1))


class ConvNeXt(nn.Module):
    """Layer norm over channels, GELU, a layer scale and a global response norm, as in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = stem(), nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.gamma, self.scale, self.head = (
            nn.Parameter(torch.ones(32)),
            nn.Parameter(torch.ones(WIDTH)),
            nn.Linear(WIDTH, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        response = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + self.gamma * y * (response / (response.mean(-1, keepdim=True) + 1e-6))
        x = x + (self.scale * self.down(y)).permute(0, 3, 1, 2)
        return self.head(x.mean([-2, -1]))


class Mixer(nn.Module):
    """Linear layers over tokens and a tanh GELU, as in MLP-Mixer and gMLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.channels, self.head = (
            stem(),
            nn.Linear(16, 16),
            nn.Linear(8, WIDTH),
            nn.Linear(WIDTH, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = tokens(self.stem(x))
        x = x + F.gelu(self.mix(x.transpose(1, 2)), approximate="tanh").transpose(1, 2)
        gate, value = x.chunk(2, -1)
        return self.head((x + self.channels(gate * value)).mean(1))


class Hiera(nn.Module):
    """Attention with five dimensions and pooled queries, as in Hiera, Twins and NesT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = stem(), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = tokens(self.stem(x))
        q, k, v = self.qkv(x).reshape(x.shape[0], 4, 4, 3, HEADS, WIDTH // HEADS).permute(3, 0, 4, 2, 1, 5)
        x = F.scaled_dot_product_attention(q.amax(3, keepdim=True), k, v)  # (N, heads, windows, queries, channels)
        return self.head(x.transpose(1, 3).reshape(x.shape[0], -1, WIDTH).mean(1))


class LinearAttention(nn.Module):
    """ReLU attention without a softmax in grouped convolutions, as in EfficientViT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = stem(), nn.Conv2d(WIDTH, 3 * WIDTH, 1)
        self.grouped, self.head = nn.Conv2d(3 * WIDTH, 3 * WIDTH, 3, padding=1, groups=3), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        q, k, v = self.grouped(self.qkv(x)).reshape(b, 3, c, h * w).transpose(2, 3).unbind(1)
        q, k, v = q.relu(), k.relu(), F.pad(v, (0, 1), value=1.0)
        y = q @ (k.transpose(1, 2) @ v)
        return self.head((y[..., :-1] / (y[..., -1:] + 1e-5)).mean(1))


class Rope(nn.Module):
    """Rotary positions, RMS norm and SwiGLU, as in EVA-02 and DINOv3."""

    angle: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale, self.qkv = stem(), nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, 3 * WIDTH)
        self.gate, self.value, self.head = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24), nn.Linear(24, 5)
        angle = torch.arange(16)[:, None] / 10 ** torch.arange(0, 4)[None]
        self.register_buffer("angle", angle.repeat_interleave(2, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = tokens(self.stem(x))
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = self.qkv(x).view(x.shape[0], 16, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v).transpose(1, 2).flatten(2)
        return self.head((F.silu(self.gate(x)) * self.value(x)).mean(1))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * self.angle.cos() + turned * self.angle.sin()


class UNet(nn.Module):
    """Upsampling, a transposed convolution and skips into a dict of maps, as in segmentation packages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = stem(2), nn.Conv2d(WIDTH, 32, 3, 2, 1), nn.ConvTranspose2d(32, WIDTH, 2, 2)
        self.head = nn.Conv2d(2 * WIDTH, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        small = F.relu(self.stem(x))
        y = self.head(torch.cat([small, self.up(F.relu(self.down(small)))], 1))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False), "aux": y.sigmoid()}


@dataclass
class Detections:
    logits: torch.Tensor
    pred_boxes: torch.Tensor


class Detr(nn.Module):
    """Learned queries, nn.MultiheadAttention and a dataclass of outputs, as in transformers' DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = stem(), nn.Embedding(6, WIDTH)
        self.cross, self.logits, self.boxes = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
            *(nn.Linear(WIDTH, size) for size in (5, 4)),
        )

    def forward(self, x: torch.Tensor) -> Detections:
        x = tokens(self.stem(x))
        found, _ = self.cross(self.queries.weight.unsqueeze(0).expand(x.shape[0], -1, -1), x, x)
        return Detections(self.logits(found), self.boxes(found).sigmoid())


class LeViT(nn.Module):
    """Batch norms over tokens and two heads that are averaged, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear, self.norm = stem(), nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.BatchNorm1d(2 * WIDTH)
        self.heads = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(2 * WIDTH), nn.Linear(2 * WIDTH, 5)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(tokens(self.stem(x)))
        x = F.hardswish(self.norm(x.flatten(0, 1)).reshape_as(x)).mean(1)
        return torch.stack([head(x) for head in self.heads]).mean(0)


KINDS: tuple[Callable[[], nn.Module], ...] = (
    ResNet, InvertedResidual, ViT, Swin, ConvNeXt, Mixer, Hiera, LinearAttention, Rope, UNet, Detr, LeViT,
)  # fmt: skip
