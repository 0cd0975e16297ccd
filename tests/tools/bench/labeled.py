"""Images to calibrate on, and labeled ones to measure accuracy on: the user's, or CIFAR-10's of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgevit.errors import UsageError
from edgevit.images import find_images
from edgevit.models.loading import class_names
from edgevit.types import Array
from tests.helpers.cifar10 import DATA

CALIBRATION_IMAGES = 32  # of CIFAR-10's


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolders:
    """Two folders of images. Raises UsageError if they share a file."""

    calib: Path
    eval: Path

    def __post_init__(self) -> None:
        calib, labeled = ({path.resolve() for path in find_images(each)} for each in (self.calib, self.eval))
        if shared := calib & labeled:
            raise UsageError(f"{min(shared)} is in both folders; measure accuracy on images that calibrated nothing")


def write_cifar10(folder: Path) -> ImageFolders:
    """Write 32 images of the calibration set of the tests, and all labeled ones, in a folder a class."""
    names = class_names("cifar10")
    with np.load(DATA / "cifar10_sample.npz") as sample:
        _save(folder / "calib", sample["calibration_images"][:CALIBRATION_IMAGES], [""] * CALIBRATION_IMAGES)
        _save(folder / "eval", sample["test_images"], [names[label] for label in sample["test_labels"]])
    return ImageFolders(calib=folder / "calib", eval=folder / "eval")


def _save(folder: Path, images: Array, subfolders: Sequence[str]) -> None:
    for index, (pixels, subfolder) in enumerate(zip(images, subfolders, strict=True)):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / subfolder / f"{index:04}.png")
