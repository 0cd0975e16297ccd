"""From the outputs of a segmentation model to one class per pixel of the photo, and COCO's run-length encoding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from edgevit.placement import Placement
from edgevit.types import Array

IGNORED = 255  # the label of pixels that have no class
_TILE_CELLS = 8  # columns of the map in a tile
_MAX_VALUES = 1 << 20  # logits of the photo's pixels that are held at once; they stay in the processor's cache


def class_map(logits: Array, placement: Placement) -> Array:
    """Return the best class of each pixel of the photo, (H, W), from logits (classes, h, w) over the model's input.

    Logits are resized to the photo bilinearly (half-pixel centers) before the best is chosen: the best classes of a
    small map, resized, would have the steps of that map. It is done tile by tile, and classes that can win nowhere in
    a tile, because another is better at all corners around, are not resized there.
    """
    rows, columns = placement.map_centers(logits.shape[1:])
    found = np.empty(placement.photo, np.uint8 if len(logits) <= 256 else np.uint16)
    for vertical, low, high in _tiles(rows, logits.shape[1], cells=1):
        for horizontal, left, right in _tiles(columns, logits.shape[2], cells=_TILE_CELLS):
            corners = logits[:, low:high, left:right].astype(np.float32)
            candidates = _possible_winners(corners)
            wide = _interpolate(corners[candidates], columns[horizontal] - left, axis=2)
            step = max(1, _MAX_VALUES // (wide.shape[0] * wide.shape[2]))
            for start in range(vertical.start, vertical.stop, step):
                part = slice(start, min(start + step, vertical.stop))
                best = _interpolate(wide, rows[part] - low, axis=1).argmax(0)
                found[part, horizontal] = candidates[best]
    return found


def _tiles(centers: Array, size: int, *, cells: int) -> Iterator[tuple[slice, int, int]]:
    """Yield runs of pixels that lie between `cells` + 1 points of a map along one axis, and the range of its points."""
    cell = np.clip(np.floor(centers), 0, size - 1).astype(np.intp) // cells * cells
    bounds = [0, *(np.flatnonzero(np.diff(cell)) + 1).tolist(), len(centers)]
    for start, stop in pairwise(bounds):
        yield slice(start, stop), int(cell[start]), min(int(cell[start]) + cells + 1, size)


def _possible_winners(corners: Array) -> Array:
    """Return the classes that may be the best somewhere between the points of a map, (classes, h, w).

    Interpolated values lie between those of the four corners, so a class loses if its largest corner is below the
    smallest corner of another.
    """
    padded = np.pad(corners, ((0, 0), (0, 1), (0, 1)), mode="edge")
    four = [padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]]
    most, least = np.maximum.reduce(four), np.minimum.reduce(four)
    return np.flatnonzero((most >= least.max(0)).any((1, 2)))


def _interpolate(values: Array, centers: Array, *, axis: int) -> Array:
    """Return `values` at fractional places along an axis; beyond the first and last they are constant."""
    last = values.shape[axis] - 1
    places = np.clip(centers, 0, last)
    low = np.minimum(places.astype(np.intp), last)
    weight = (places - low).astype(np.float32)
    weight = weight.reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    below, above = np.take(values, low, axis), np.take(values, np.minimum(low + 1, last), axis)
    return np.asarray(below + (above - below) * weight)


def nearest_classes(classes: Array, placement: Placement) -> Array:
    """Return the class of each pixel of the photo, (H, W), from that of each pixel of a map, (h, w)."""
    rows, columns = placement.map_centers(classes.shape)
    near = [
        np.clip(np.floor(centers + 0.5), 0, size - 1).astype(np.intp)
        for centers, size in zip((rows, columns), classes.shape, strict=True)
    ]
    return np.asarray(classes[np.ix_(*near)])


def run_lengths(mask: Array) -> dict[str, Any]:
    """Return a mask, (H, W) of booleans, in COCO's compressed run-length encoding.

    Lengths of runs of zeros and ones in turn, column by column; from the third on, each is written as its difference
    from the one before the last, in groups of five bits, least first, with a sixth bit if more follow, plus 48.
    """
    flat = np.asarray(mask, np.bool_).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [*([0] if len(flat) and flat[0] else []), 0, *edges.tolist(), len(flat)]
    counts = [int(end - start) for start, end in pairwise(sorted(bounds))]
    text = "".join(_five_bits(count - (counts[index - 2] if index > 2 else 0)) for index, count in enumerate(counts))
    return {"size": list(mask.shape), "counts": text}


def _five_bits(value: int) -> str:
    letters = []
    while True:
        bits, value = value & 31, value >> 5
        more = value != (-1 if bits & 16 else 0)
        letters.append(chr(48 + bits + (32 if more else 0)))
        if not more:
            return "".join(letters)
