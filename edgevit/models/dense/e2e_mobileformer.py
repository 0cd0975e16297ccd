"""End-to-end detector of Mobile-Former (Chen et al., CVPR 2022, arXiv 2108.05895, section 5): a RECONSTRUCTION.

The authors published neither code nor weights of this detector, and the table with the layout of its head is in no
source that we have. Known from the paper: 100 object queries; for the 508M model, a head of nine Mobile-Former blocks
at strides 32, 16 and 8, coarse to fine; upsampling by bilinear interpolation, then addition of the backbone's map;
tokens apart from the backbone's; position embeddings that each block adapts, q_p + g(q_f), with g two linear layers and
a ReLU; the sum q_f + q_p as the query of both attentions; DETR's prediction heads (arXiv 2005.12872); the backbone's
spatial dynamic ReLU. The rest is our choice: `PLAN` states it, and no figure of the paper is claimed.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError, unknown_name
from edgevit.models.features import MAP_NAMES, Backbone
from edgevit.models.layers import attend, check_bound_size, check_heads, check_size, merge_heads, split_heads

MobileKind: TypeAlias = Literal["encoder", "lite"]
Scale: TypeAlias = tuple[int, int, MobileKind]  # stride, number of blocks, their Mobile part
E2EOutputs: TypeAlias = Literal["boxes", "raw", "features"]

PLAN: tuple[Scale, ...] = ((32, 5, "encoder"), (16, 2, "lite"), (8, 2, "lite"))
HEADS = 8
TEMPERATURE = 10_000  # of the sine embedding


def sine_positions(height: int, width: int, dim: int) -> Tensor:
    """Return DETR's position embedding of a map without padding, (dim, H, W).

    Rows fill the first half of the channels and columns the second, as sine and cosine in turn. Positions count from 1
    and are scaled to 2 pi.
    """
    half = dim // 2
    frequencies = TEMPERATURE ** (2 * (torch.arange(half, dtype=torch.float64) // 2) / half)

    def along(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=torch.float64) / (length + 1e-6) * 2 * math.pi
        angles = position[:, None] / frequencies
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)  # (length, half)

    rows = along(height).t()[:, :, None].expand(half, height, width)
    columns = along(width).t()[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns)).float()


def attend_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of tokens (N, L, C) to others (N, M, C) in 8 heads, (N, L, C)."""
    heads = [split_heads(part, HEADS) for part in (q, k, v)]
    return merge_heads(attend(*heads, scale=(q.shape[2] // HEADS) ** -0.5))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, a shortcut and a norm after it."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    """Mobile part at stride 32: a layer of DETR's encoder over the pixels, tokens (N, HW, C) -> (N, HW, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        placed = x + position
        x = self.norm(x + self.proj(attend_heads(self.q(placed), self.k(placed), self.v(x))))
        return self.ffn(x)


class Lite(nn.Module):
    """Mobile part at finer strides: a depthwise 3x3 convolution to 4 C channels, ReLU6, and a pointwise one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, 4 * dim, 3, 1, 1, groups=dim, bias=False)
        self.norm1 = nn.BatchNorm2d(4 * dim)
        self.pointwise = nn.Conv2d(4 * dim, dim, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.pointwise(F.relu6(self.norm1(self.depthwise(x)))))


class Block(nn.Module):
    """A block of the head on pixels (N, C, H, W), query features and query positions (N, L, C)."""

    def __init__(self, dim: int, kind: MobileKind, *, encoder_hidden: int, former_hidden: int) -> None:
        super().__init__()
        self.cross_q, self.cross_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_q, self.self_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, former_hidden)
        self.mobile = Encoder(dim, encoder_hidden) if kind == "encoder" else Lite(dim)
        self.back_k, self.back_v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.adapt = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, qf: Tensor, qp: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = x.shape
        pixels = x.flatten(2).transpose(1, 2)  # (N, HW, C)
        read = attend_heads(self.cross_q(qf + qp), pixels + position, pixels)
        qf = self.cross_norm(qf + self.cross_proj(read))  # pixels to queries
        related = attend_heads(self.self_q(qf + qp), qf + qp, qf)
        qf = self.ffn(self.self_norm(qf + self.self_proj(related)))  # queries to queries
        if isinstance(self.mobile, Encoder):
            pixels = self.mobile(pixels, position)
        else:
            pixels = self.mobile(x).flatten(2).transpose(1, 2)
        pixels = pixels + attend_heads(pixels, self.back_k(qf), self.back_v(qf))  # queries to pixels
        return pixels.transpose(1, 2).reshape(-1, *shape[1:]), qf, qp + self.adapt(qf)


class BoxHead(nn.Module):
    """DETR's prediction heads on queries (N, L, C): logits (N, L, K + 1) and boxes (N, L, 4) as (cx, cy, w, h).

    The last class is "no object"; boxes are in fractions of the image.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.class_embed = nn.Linear(dim, num_classes + 1)
        layers = [nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4)]
        self.bbox_embed = nn.Sequential(*layers)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return self.class_embed(queries), self.bbox_embed(queries).sigmoid()


class E2EMobileFormer(nn.Module):
    """Reconstruction of E2E-MF for images of one size, whose sides are multiples of 32.

    `outputs` selects what it returns:
    * "boxes": `boxes` (N, queries, 4) as (x1, y1, x2, y2) in pixels of the input, and `scores` (N, queries, K): the
      softmax over all classes and "no object", without the latter.
    * "raw": `logits` (N, queries, K + 1) and `boxes` (N, queries, 4) as (cx, cy, w, h) in fractions of the input.
    * "features": the backbone's c2..c5.

    `plan` gives the scales of the head from coarse to fine. Padding counts as image: the position embedding is a
    constant of the graph. Raises UsageError for another size of images or a plan that is not one.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        img_size: tuple[int, int],
        num_classes: int = 80,
        plan: tuple[Scale, ...] = PLAN,
        queries: int = 100,
        width: int = 256,
        encoder_hidden: int = 2048,
        former_hidden: int = 1024,
        outputs: E2EOutputs = "boxes",
    ) -> None:
        super().__init__()
        check_size("E2EMobileFormer", *img_size, divisor=32)
        check_heads(width, HEADS)
        _check_plan(plan)
        if outputs not in get_args(E2EOutputs):
            raise unknown_name("outputs", outputs, get_args(E2EOutputs))
        self.img_size, self.outputs = img_size, outputs
        self.strides = tuple(stride for stride, _, _ in plan)
        self.backbone = backbone
        self.query_feat = nn.Parameter(torch.zeros(queries, width))
        self.query_pos = nn.Parameter(torch.randn(queries, width))
        self.input_proj = nn.ModuleList(
            nn.Conv2d(backbone.channels[_level(stride)], width, 1) for stride in self.strides
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                Block(width, kind, encoder_hidden=encoder_hidden, former_hidden=former_hidden) for _ in range(count)
            )
            for _, count, kind in plan
        )
        self.head = BoxHead(width, num_classes)
        for stride in self.strides:
            position = sine_positions(img_size[0] // stride, img_size[1] // stride, width)
            self.register_buffer(f"position_{stride}", position.flatten(1).t()[None].contiguous(), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_bound_size("E2EMobileFormer", x, self.img_size)
        maps = self.backbone.feature_maps(x)
        if self.outputs == "features":
            return dict(zip(MAP_NAMES, maps, strict=True))
        logits, boxes = self.head(self.decode(maps, self.query_feat[None], self.query_pos[None]))
        if self.outputs == "raw":
            return {"logits": logits, "boxes": boxes}
        height, width = self.img_size
        sides = torch.tensor([width, height], dtype=boxes.dtype, device=boxes.device)
        center, half = boxes[..., :2] * sides, boxes[..., 2:] * (sides / 2)
        corners = torch.cat((center - half, center + half), dim=-1)
        return {"boxes": corners, "scores": logits.softmax(-1)[..., :-1]}

    def decode(self, maps: tuple[Tensor, ...], qf: Tensor, qp: Tensor) -> Tensor:
        """Return the features of the queries (N, L, C) after all blocks."""
        pixels: Tensor | None = None
        for stride, project, blocks in zip(self.strides, self.input_proj, self.blocks, strict=True):
            own = project(maps[_level(stride)])
            if pixels is not None:
                own = own + F.interpolate(pixels, own.shape[2:], mode="bilinear", align_corners=False)
            pixels = own
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList of blocks
                pixels, qf, qp = block(pixels, qf, qp, self.get_buffer(f"position_{stride}"))
        return qf


def _level(stride: int) -> int:
    """Return the position of the map with this stride among c2..c5."""
    return int(math.log2(stride)) - 2


def _check_plan(plan: tuple[Scale, ...]) -> None:
    strides = [scale[0] for scale in plan]
    if not strides or strides != sorted(set(strides), reverse=True) or not set(strides) <= {4, 8, 16, 32}:
        raise UsageError(f"the strides of a plan fall, and are among 32, 16, 8 and 4; got {strides}")
    for _, count, kind in plan:
        if count < 1 or kind not in get_args(MobileKind):
            raise UsageError(f"a scale of a plan is (stride, blocks, encoder or lite), not {count} blocks of {kind!r}")
