"""Inputs that a model is compared on: photos if it takes photos, and seeded noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgevit.errors import ImageError
from edgevit.images import (
    Preprocessing,
    find_images,
    read_image,
    read_readable,
    sample_images,
    to_array,
    warn_of_skipped,
)
from edgevit.types import Array

_LOG = logging.getLogger(__name__)

MAX_PHOTOS = 8  # of a folder
NOISE_ROWS = 2
_SEED = 0


def photo_inputs(preprocessing: Preprocessing | None, images: Path | None, *, strict: bool) -> tuple[Array, ...]:
    """Return photos for one input, (rows, C, H, W); empty without preprocessing.

    `images` is a folder of photos; without it, six views of edgevit's two photos are made. Photos that cannot be read
    are left out, with a warning; ImageError is raised for the first if `strict`, or if none can be read.
    """
    if preprocessing is None:
        return ()
    if images is not None:
        return (_first_readable(images, preprocessing, strict=strict),)
    photos = [read_image(path) for path in sample_images()]
    rows = [to_array(photo, preprocessing) for photo in photos]
    # Whole, mirrored, and the center half.
    rows += [np.ascontiguousarray(row[:, :, ::-1]) for row in rows]
    centers = [photo.crop(_center_box(photo.width, photo.height)) for photo in photos]
    rows += [to_array(center, preprocessing) for center in centers]
    return (np.stack(rows),)


def noise_inputs(examples: Sequence[Array], rows: int = NOISE_ROWS) -> tuple[Array, ...]:
    """Return normal noise for floating-point inputs; others repeat their example: noise may be no valid index.

    Examples of zeros that are no indices are replaced: uint8 by noise from 0 to 255, bool by both values in turn, as
    noise may mask a whole row. `examples` has one array (1, ...) for each input.
    """
    random = np.random.default_rng(_SEED)
    return tuple(_noise_like(example, rows, random) for example in examples)


def _noise_like(example: Array, rows: int, random: np.random.Generator) -> Array:
    shape = (rows, *example.shape[1:])
    if example.dtype.kind == "f":
        return random.standard_normal(shape).astype(example.dtype)
    if example.dtype == np.uint8 and not example.any():
        return random.integers(0, 256, shape, np.uint8)
    if example.dtype == np.bool_ and not example.any():
        return np.asarray(np.indices(shape).sum(0) % 2 == 1)
    return np.repeat(example, rows, axis=0)


def warn_of_single_values(names: Sequence[str], inputs: Sequence[Array]) -> None:
    """Warn of integer inputs that have one value in all rows: parity says nothing about others."""
    for name, array in zip(names, inputs, strict=True):
        if array.dtype.kind in "iu" and array.size and array.min() == array.max():
            _LOG.warning("edgevit: the integer input %s was compared with one value only (%s)", name, array.flat[0])


def _first_readable(folder: Path, preprocessing: Preprocessing, *, strict: bool) -> Array:
    """Return the first MAX_PHOTOS photos of a folder that can be read, (n, C, H, W)."""
    rows: list[Array] = []
    skipped: list[ImageError] = []
    for path in find_images(folder):
        photos, _ = read_readable([path], preprocessing, skipped.append)
        rows += list(photos)
        if len(rows) == MAX_PHOTOS:
            break
    if skipped and (strict or not rows):
        raise skipped[0]
    warn_of_skipped("--images", skipped, len(rows) + len(skipped))
    return np.stack(rows)


def _center_box(width: int, height: int) -> tuple[int, int, int, int]:
    return (width // 4, height // 4, width - width // 4, height - height // 4)
