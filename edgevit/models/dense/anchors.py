"""RetinaNet's anchors, and boxes from what the head predicts for them.

"Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017, arXiv 1708.02002), in mmdet's form: a cell's anchors are
centered on its corner (x * stride, y * stride), not on its middle, and are not rounded. Boxes are (x1, y1, x2, y2) in
pixels of the network's input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALES = tuple(4 * 2 ** (octave / 3) for octave in range(3))  # of the stride
ANCHORS = len(RATIOS) * len(SCALES)  # of a cell
MAX_LOG_SCALE = abs(math.log(16 / 1000))  # bound of the predicted log of a side's scale


def base_anchors(stride: int) -> Tensor:
    """Return a cell's anchors (9, 4), centered on the origin; the scale varies fastest."""
    ratios, scales = torch.tensor(RATIOS, dtype=torch.float64), torch.tensor(SCALES, dtype=torch.float64)
    height = stride * ratios.sqrt()[:, None] * scales
    width = stride / ratios.sqrt()[:, None] * scales
    return (torch.stack((-width, -height, width, height), dim=-1) / 2).reshape(ANCHORS, 4).float()


def grid_anchors(height: int, width: int, stride: int) -> Tensor:
    """Return the anchors of a map (H * W * 9, 4), row by row, the anchors of a cell together."""
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    corners = torch.stack((x, y, x, y), dim=-1)  # (H, W, 4)
    return (corners[:, :, None] + base_anchors(stride)).reshape(-1, 4)


def decode(deltas: Tensor, anchors: Tensor, *, img_size: tuple[int, int]) -> Tensor:
    """Return boxes (N, n, 4), clipped to the image, from deltas (N, n, 4) to anchors (n, 4).

    The deltas are the distance of the centers over the anchor's sides, and the logs of the sides' scales.
    """
    sides = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[..., :2] * sides
    half = sides / 2 * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    height, width = img_size
    limit = torch.tensor([width, height, width, height], dtype=anchors.dtype, device=anchors.device)
    return torch.minimum(torch.cat((center - half, center + half), dim=-1).clamp(min=0), limit)
