"""The position of a photo's boxes in an input."""

from __future__ import annotations

import numpy as np

from edgevit.placement import Placement
from edgevit.types import Array


def boxes_to_input(placement: Placement, boxes: Array) -> Array:
    """Return boxes of the photo, (n, 4), in the input's pixels: the inverse of `Placement.boxes_to_photo`."""
    photo, resized, offset = (
        np.array(pair[::-1] * 2, np.float64) for pair in (placement.photo, placement.resized, placement.offset)
    )
    moved: Array = boxes * resized / photo + offset
    return moved
