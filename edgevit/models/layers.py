"""Layers shared by several architectures. They export to slices, pads, reshapes and matmuls."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError


def check_size(name: str, height: int, width: int, *, divisor: int) -> None:
    """Raise UsageError, with the next valid size, if a side of an image is not a multiple of `divisor`."""
    if height < 1 or width < 1 or height % divisor or width % divisor:
        fitting = "x".join(str(max(math.ceil(side / divisor), 1) * divisor) for side in (height, width))
        raise UsageError(
            f"{name} needs image sides that are multiples of {divisor}, got {height}x{width}; "
            f"the next valid size is {fitting}"
        )


def check_bound_size(name: str, x: Tensor, img_size: tuple[int, int]) -> None:
    """Raise UsageError if images (N, 3, H, W) do not have the `img_size` that the network was created for."""
    height, width = x.shape[2:]
    if (height, width) != tuple(img_size):
        raise UsageError(
            f"this {name} was created for {img_size[0]}x{img_size[1]} images, got {height}x{width}; create it with "
            f"img_size=({height}, {width})"
        )


def check_heads(dim: int, heads: int) -> None:
    """Raise UsageError if `dim` channels cannot be split evenly into `heads` heads."""
    if heads < 1 or dim % heads:
        raise UsageError(f"{dim} channels are not divisible by {heads} heads; use a number of heads that divides {dim}")


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): randomly drop the branch of individual images in training.

    The remaining images are scaled by 1 / (1 - rate). The identity in inference.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = torch.rand(x.shape[0], *([1] * (x.ndim - 1)), device=x.device, dtype=x.dtype) < keep
        return x * mask / keep


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return rates that rise linearly from 0 to `rate` over all blocks, grouped by stage."""
    flat = torch.linspace(0, rate, sum(depths), device="cpu").tolist()
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [flat[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def init_truncated_normal(module: nn.Module) -> None:
    """Initialize linear and convolution weights from N(0, 0.02) truncated at +-2, and their biases with 0.

    This is the usual initialization of vision transformers. Norms keep PyTorch's default: weight 1, bias 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, for tokens (N, L, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return softmax(scale * q k^T + bias) v, computed over the last two axes (…, L, d).

    The operations are written out, with the scale applied to q: engines fuse this form, and in half precision the
    product of unscaled q and k can overflow.
    """
    scores = (q * scale) @ k.transpose(-2, -1)  # (…, L, L)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1) @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split the channels into heads, (N, L, C) -> (N, heads, L, C / heads)."""
    return x.reshape(-1, x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads, (N, heads, L, d) -> (N, L, heads * d)."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], x.shape[1] * x.shape[3])


class Attention(nn.Module):
    """Multi-head self-attention, tokens (N, L, C) -> (N, L, C), or (N, L, out) if `out` is given.

    One linear layer computes q, k and v, in this order.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, out: int | None = None) -> None:
        super().__init__()
        width = out or dim
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(attend(q, k, v, scale=self.scale, bias=bias)))


class PerformerAttention(nn.Module):
    """Single-head linear attention with positive random features ("token performer" in T2T-ViT and ViTAE).

    phi(u) = exp(u w^T - |u|^2 / 2) / sqrt(m); y = phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + 1e-8);
    the output is v + proj(y), so the shortcut is v. (Choromanski et al., arXiv 2009.14794, equations 4 and 5)

    The code multiplies numerator and denominator by m. This removes the square root and raises the epsilon to
    m * 1e-8: PyTorch's ONNX exporter treats an addition of 1e-8 or less as an addition of 0 and removes it.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        features = dim // 2  # m
        self.epsilon = features * 1e-8
        self.kqv = nn.Linear(in_dim, 3 * dim)  # in the order k, q, v
        self.proj = nn.Linear(dim, dim)
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(features, dim)), requires_grad=False)
        self.w.data.mul_(features**0.5)

    def phi(self, u: Tensor) -> Tensor:
        """Return sqrt(m) phi(u), (N, L, C) -> (N, L, m)."""
        return torch.exp(u @ self.w.t() - (u * u).sum(-1, keepdim=True) / 2)

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(x).chunk(3, dim=-1)  # each (N, L, C)
        k, q = self.phi(k), self.phi(q)  # (N, L, m)
        weight = q @ k.sum(1, keepdim=True).transpose(1, 2)  # (N, L, 1)
        y = q @ (k.transpose(1, 2) @ v) / (weight + self.epsilon)  # (N, L, C)
        return v + self.proj(y)


def to_tokens(x: Tensor) -> Tensor:
    """Reshape a map (N, C, H, W) to tokens (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """Reshape tokens (N, H * W, C) to a map (N, C, H, W)."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], height, width)


class PatchEmbed(nn.Module):
    """Embed square patches as tokens, (N, 3, H, W) -> (N, H/p * W/p, C)."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.proj(x))


def add_class_token(x: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    """Prepend a class token (1, 1, C) to tokens (N, L, C) and add a position table (1, 1 + L, C).

    The class token is added to the first row of the table, and the addition broadcasts it over the batch. The exported
    graph therefore needs no Expand.
    """
    table = pos_embed + F.pad(cls_token, (0, 0, 0, pos_embed.shape[1] - 1))  # (1, 1 + L, C)
    return F.pad(x, (0, 0, 1, 0)) + table  # (N, 1 + L, C)


def partition_windows(x: Tensor, size: int) -> Tensor:
    """Split a map into square windows, (N, H, W, C) -> (N * windows, size * size, C).

    No intermediate tensor has more than 4 axes (the usual form has 6).
    """
    _, _, width, channels = x.shape
    rows = x.reshape(-1, size, width // size, size * channels)  # (N * H/s, s, W/s, s * C)
    return rows.transpose(1, 2).reshape(-1, size * size, channels)


def merge_windows(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Join windows to a map, (N * windows, size * size, C) -> (N, H, W, C): the inverse of `partition_windows`."""
    channels = x.shape[2]
    rows = x.reshape(-1, width // size, size, size * channels)  # (N * H/s, W/s, s, s * C)
    return rows.transpose(1, 2).reshape(-1, height, width, channels)
