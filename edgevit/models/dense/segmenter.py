"""The outputs that all segmenters share: logits at a quarter of the size, or the classes of all pixels."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError, unknown_name
from edgevit.models.features import MAP_NAMES
from edgevit.models.layers import check_bound_size, check_size

SegmenterOutputs: TypeAlias = Literal["logits", "classes", "features"]
MAX_CLASSES = 256  # that a byte holds


class Segmenter(nn.Module):
    """A segmenter for images of one size, whose sides are multiples of 32.

    `outputs` selects what it returns:
    * "logits": `logits` (N, K, H/4, W/4).
    * "classes": `classes` (N, H, W), uint8: the best class of each pixel, after the logits were resized to the image.
    * "features": the backbone's c2..c5.

    Raises UsageError for another size of images, and for "classes" of more than 256 classes.
    """

    def __init__(self, *, img_size: tuple[int, int], num_classes: int, outputs: SegmenterOutputs) -> None:
        super().__init__()
        check_size(type(self).__name__, *img_size, divisor=32)
        if outputs not in get_args(SegmenterOutputs):
            raise unknown_name("outputs", outputs, get_args(SegmenterOutputs))
        if outputs == "classes" and num_classes > MAX_CLASSES:
            raise UsageError(f'outputs="classes" holds up to {MAX_CLASSES} classes, not {num_classes}; use "logits"')
        self.img_size, self.outputs = img_size, outputs

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return c2..c5 of images (N, 3, H, W)."""
        raise NotImplementedError

    def logits(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Return the logits (N, K, H/4, W/4) from c2..c5."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_bound_size(type(self).__name__, x, self.img_size)
        maps = self.feature_maps(x)
        if self.outputs == "features":
            return dict(zip(MAP_NAMES, maps, strict=True))
        logits = self.logits(maps)
        return {"logits": logits} if self.outputs == "logits" else {"classes": classes(logits)}


def classes(logits: Tensor) -> Tensor:
    """Return the best class of each pixel, (N, K, H/4, W/4) -> (N, H, W) uint8.

    The logits are resized, not the classes: their borders then follow the image at the resolution of its pixels.
    """
    resized = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    return resized.argmax(1).to(torch.uint8)
