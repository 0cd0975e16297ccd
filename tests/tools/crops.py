"""Random crops of the photos of the package, prepared as a model asks for: calibration inputs, and held-out ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevit.images import Preprocessing, read_image, sample_images, to_array
from edgevit.types import Array


def crops(preprocessing: Preprocessing, count: int, *, seed: int) -> Array:
    """Return `count` crops (count, C, H, W) of 40 to 100 % of a photo's shorter side."""
    generator, photos = np.random.default_rng(seed), sample_images()
    return np.stack([_crop(generator, preprocessing, photos[index % len(photos)]) for index in range(count)])


def _crop(generator: np.random.Generator, preprocessing: Preprocessing, path: Path) -> Array:
    image = read_image(path)
    side = int(min(image.size) * generator.uniform(0.4, 1))
    left, top = (int(generator.integers(0, length - side + 1)) for length in image.size)
    return to_array(image.crop((left, top, left + side, top + side)), preprocessing)
