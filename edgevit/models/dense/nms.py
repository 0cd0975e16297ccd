"""Non-maximum suppression in a graph without data-dependent shapes: a fixed number of selections, unrolled.

Each selection takes the best remaining candidate and removes those of its class that overlap it, which is what the
greedy algorithm over a sorted list does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevit.dense.nms import NmsOptions

IN_GRAPH = NmsOptions(top_k=1000)  # the matrix of overlaps has as many rows and columns


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Return the intersection over union of all pairs of boxes, (N, m, 4) -> (N, m, m)."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]  # (N, m, m)
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # (N, m)
    return shared / (areas[:, :, None] + areas[:, None] - shared).clamp(min=1e-6)


def select(boxes: Tensor, scores: Tensor, options: NmsOptions) -> dict[str, Tensor]:
    """Return the detections among boxes (N, n, 4) with scores (N, n, K).

    `boxes` (N, d, 4), `scores` (N, d) and `labels` (N, d) are ordered by score and padded with -1 after the first
    `num` (N, 1) of them; d is `options.kept`.
    """
    classes = scores.shape[2]
    count = scores.shape[1] * classes
    best, pair = scores.flatten(1).topk(min(options.top_k or count, count))  # (N, m)
    labels = pair % classes
    anchor = torch.div(pair, classes, rounding_mode="floor")
    candidates = boxes.gather(1, anchor[..., None].expand(-1, -1, 4))  # (N, m, 4)
    overlap = pairwise_iou(candidates) > options.max_iou
    if not options.class_agnostic:
        overlap = overlap & (labels[:, :, None] == labels[:, None])
    remaining = torch.where(best > options.min_score, best, -1.0)
    chosen, chosen_scores = [], []
    positions = torch.arange(best.shape[1], device=boxes.device)
    for _ in range(options.kept):
        score, index = remaining.max(1, keepdim=True)  # (N, 1)
        removed = overlap.float().gather(1, index[..., None].expand(-1, -1, best.shape[1]))[:, 0]  # (N, m)
        remaining = torch.where((removed > 0) | (positions == index), -1.0, remaining)
        chosen.append(index)
        chosen_scores.append(score)
    index, score = torch.cat(chosen, 1), torch.cat(chosen_scores, 1)  # (N, d)
    found = score > 0
    return {
        "num": found.int().sum(1, keepdim=True, dtype=torch.int32),
        "boxes": torch.where(found[..., None], candidates.gather(1, index[..., None].expand(-1, -1, 4)), -1.0),
        "scores": score,
        "labels": torch.where(found, labels.gather(1, index), -1).int(),
    }
