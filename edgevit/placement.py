"""Position of a photo in a model's input, and the way back: boxes and pixels of the input in the photo's own pixels.

Coordinates are continuous: pixel i covers i to i + 1, so its center is i + 0.5. Sizes and offsets are (height, width)
and (top, left); boxes are x1, y1, x2, y2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevit.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A photo of size `photo`, resized to `resized` and put at `offset` into an input of size `input_size`."""

    photo: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    input_size: tuple[int, int]

    def boxes_to_photo(self, boxes: Array) -> Array:
        """Return boxes of the input, (n, 4), in the photo's pixels, clipped to the photo."""
        photo = _as_box(self.photo)
        moved = np.asarray(boxes, np.float64) - _as_box(self.offset)
        return np.clip(moved * photo / _as_box(self.resized), 0, photo)  # rounding makes the two scales differ

    def map_centers(self, map_size: tuple[int, int]) -> tuple[Array, Array]:
        """Return the rows and columns of the photo's pixel centers in a map that covers the input.

        They are in pixels of the map, of which the first has its center at 0: the half-pixel rule of bilinear
        interpolation. The map may have any size.
        """
        axes = zip(self.photo, self.resized, self.offset, self.input_size, map_size, strict=True)
        rows, columns = (
            ((np.arange(photo) + 0.5) * resized / photo + start) * size / whole - 0.5
            for photo, resized, start, whole, size in axes
        )
        return rows, columns


def _as_box(vertical_horizontal: tuple[int, int]) -> Array:
    """Return a size or an offset in the order of a box: x, y, x, y."""
    return np.array(vertical_horizontal[::-1] * 2)


def rescaled(
    photo: tuple[int, int], limit: tuple[int, int], *, edges: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the size of a photo that keeps its aspect ratio and is as large as `limit` allows.

    `edges` limits the shorter and the longer side too. Sides are rounded half up, as in mmcv and torchvision, and are
    at least 1.
    """
    factors = [whole / side for whole, side in zip(limit, photo, strict=True)]
    if edges is not None:
        factors += [edges[0] / min(photo), edges[1] / max(photo)]
    height, width = (
        min(whole, max(1, int(side * min(factors) + 0.5))) for side, whole in zip(photo, limit, strict=True)
    )
    return height, width


def place(
    photo: tuple[int, int], resized: tuple[int, int], limit: tuple[int, int], *, centered: bool = False
) -> Placement:
    """Put a resized photo into the top left corner of an input of size `limit`, or into its center."""
    offset = ((limit[0] - resized[0]) // 2, (limit[1] - resized[1]) // 2) if centered else (0, 0)
    return Placement(photo=photo, resized=resized, offset=offset, input_size=limit)
