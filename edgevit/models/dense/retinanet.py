"""RetinaNet: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017, arXiv 1708.02002), in mmdet's form.

A feature pyramid over c3, c4 and c5 with two more levels, and a head shared by all levels that predicts, for each of
nine anchors a cell, the logits of the classes and the distance of a box from the anchor. Parameter names are mmdet's.
The head's cost does not depend on the backbone: at the default width it is ten times that of a small Mobile-Former;
`head_width` and `stacked_convs` make it lighter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from edgevit.errors import UsageError, unknown_name
from edgevit.models.dense.anchors import ANCHORS, decode, grid_anchors
from edgevit.models.dense.conv_module import conv_module
from edgevit.models.dense.fpn import FPN, ExtraConvs
from edgevit.models.dense.nms import IN_GRAPH, select
from edgevit.models.features import MAP_NAMES, Backbone
from edgevit.models.layers import check_bound_size, check_size
from edgevit.models.spec import StateDict

DetectorOutputs: TypeAlias = Literal["boxes", "raw", "features", "nms"]
STRIDES = (8, 16, 32, 64, 128)
LEVELS = tuple(f"p{level}" for level in range(3, 3 + len(STRIDES)))


class RetinaHead(nn.Module):
    """Two stacks of 3x3 convolutions, for classes and for boxes; they process maps of any size."""

    def __init__(self, width: int, stacked_convs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_convs = nn.Sequential(*(conv_module(width, width, 3, relu=True) for _ in range(stacked_convs)))
        self.reg_convs = nn.Sequential(*(conv_module(width, width, 3, relu=True) for _ in range(stacked_convs)))
        self.retina_cls = nn.Conv2d(width, ANCHORS * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(width, ANCHORS * 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, A * K, H, W) and deltas (N, A * 4, H, W); the anchor varies slowest."""
        return self.retina_cls(self.cls_convs(x)), self.retina_reg(self.reg_convs(x))


def by_anchor(maps: Sequence[Tensor], values: int) -> list[Tensor]:
    """Return the predictions of each anchor, maps (N, A * values, H, W) -> (N, H * W * A, values)."""
    return [each.permute(0, 2, 3, 1).reshape(-1, math.prod(each.shape[1:]) // values, values) for each in maps]


class RetinaNet(nn.Module):
    """RetinaNet for images of one size, whose sides are multiples of 32: anchors are constants of the graph.

    `outputs` selects what it returns:
    * "boxes": `boxes` (N, n, 4) as (x1, y1, x2, y2) in pixels of the input, and `scores` (N, n, K) after the sigmoid,
      without non-maximum suppression. With `topk`, only that many anchors of each level, the best by their best class.
    * "raw": `cls_p3`..`cls_p7` (N, 9 K, h, w) and `reg_p3`..`reg_p7` (N, 36, h, w), the head's own outputs.
    * "features": the backbone's c2..c5.
    * "nms": `num`, `boxes`, `scores` and `labels` of `max_detections` after the suppression of
      `nms.select`, padded with -1.

    `extra_convs` says whether p6 is computed from c5 ("on_input", mmdet's default) or p5 ("on_output").
    Raises UsageError for another size of images.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        img_size: tuple[int, int],
        num_classes: int = 80,
        head_width: int = 256,
        stacked_convs: int = 4,
        extra_convs: ExtraConvs = "on_input",
        topk: int | None = None,
        max_detections: int = 100,
        outputs: DetectorOutputs = "boxes",
    ) -> None:
        super().__init__()
        check_size("RetinaNet", *img_size, divisor=32)
        if outputs not in get_args(DetectorOutputs):
            raise unknown_name("outputs", outputs, get_args(DetectorOutputs))
        if topk is not None and topk < 1:
            raise UsageError(f"topk must be at least 1, not {topk}")
        self.img_size, self.num_classes, self.topk, self.outputs = img_size, num_classes, topk, outputs
        self.nms = replace(IN_GRAPH, kept=max_detections)
        self.backbone = backbone
        self.neck = FPN(backbone.channels[1:], head_width, extra=2, extra_convs=extra_convs)
        self.bbox_head = RetinaHead(head_width, stacked_convs, num_classes)
        for level, anchors in zip(LEVELS, level_anchors(img_size), strict=True):
            self.register_buffer(f"anchors_{level}", anchors, persistent=False)
        _initialize(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_bound_size("RetinaNet", x, self.img_size)
        maps = self.backbone.feature_maps(x)
        if self.outputs == "features":
            return dict(zip(MAP_NAMES, maps, strict=True))
        logits, deltas = zip(*(self.bbox_head(level) for level in self.neck(maps[1:])), strict=True)
        if self.outputs == "raw":
            named = [(f"cls_{level}", each) for level, each in zip(LEVELS, logits, strict=True)]
            return dict(named) | {f"reg_{level}": each for level, each in zip(LEVELS, deltas, strict=True)}
        boxes, scores = self.detections(logits, deltas)
        if self.outputs == "nms":
            return select(boxes, scores, self.nms)
        return {"boxes": boxes, "scores": scores}

    def detections(self, logits: Sequence[Tensor], deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return boxes (N, n, 4) and scores (N, n, K) from the outputs of the head on each level."""
        scores = [each.sigmoid() for each in by_anchor(logits, self.num_classes)]
        anchors = (self.get_buffer(f"anchors_{level}") for level in LEVELS)
        boxes = [
            decode(each, level, img_size=self.img_size)
            for each, level in zip(by_anchor(deltas, 4), anchors, strict=True)
        ]
        if self.topk is not None:
            kept = [best(box, score, self.topk) for box, score in zip(boxes, scores, strict=True)]
            boxes, scores = ([pair[index] for pair in kept] for index in (0, 1))
        return torch.cat(boxes, 1), torch.cat(scores, 1)


def level_anchors(img_size: tuple[int, int]) -> list[Tensor]:
    """Return the anchors of p3..p7 for an image of that height and width, whose sides are multiples of 32."""
    height, width = img_size
    return [grid_anchors(-(-height // stride), -(-width // stride), stride) for stride in STRIDES]


def best(boxes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` anchors of a level whose best class has the highest scores, or all if there are no more."""
    if boxes.shape[1] <= count:
        return boxes, scores
    index = scores.amax(2).topk(count).indices[..., None]  # (N, count, 1)
    return boxes.gather(1, index.expand(-1, -1, 4)), scores.gather(1, index.expand(-1, -1, scores.shape[2]))


def class_count(tensors: StateDict) -> int | None:
    """Return the number of classes of a checkpoint, or None if it is not a RetinaNet's."""
    bias = tensors.get("bbox_head.retina_cls.bias")
    return None if bias is None else len(bias) // ANCHORS


def _initialize(model: RetinaNet) -> None:
    """Initialize neck and head as the paper does: small weights, and scores of 0.01 at the start of training."""
    for layer in chain(model.neck.modules(), model.bbox_head.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    assert model.bbox_head.retina_cls.bias is not None
    nn.init.constant_(model.bbox_head.retina_cls.bias, -4.595)  # log(0.01 / 0.99)
