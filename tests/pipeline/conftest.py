"""Models and photos for the int8 tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.models.loading import class_names
from tests.helpers.cifar10 import DATA
from tests.helpers.int8 import CALIBRATION_IMAGES, EVAL_IMAGES, SMALL_MODELS, save_crops


@pytest.fixture(scope="module", autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep activation ranges of other runs out."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEVIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 images: calib/ and eval/ with one subfolder per class. Read only."""
    folder, names = tmp_path_factory.mktemp("cifar10"), class_names("cifar10")
    (folder / "calib").mkdir()
    with np.load(DATA / "cifar10_sample.npz") as sample:
        for index, pixels in enumerate(sample["calibration_images"][:CALIBRATION_IMAGES]):
            Image.fromarray(pixels).save(folder / "calib" / f"{index:04}.png")
        images, labels = sample["test_images"][:EVAL_IMAGES], sample["test_labels"][:EVAL_IMAGES]
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            (folder / "eval" / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "eval" / names[label] / f"{index:04}.png")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with model factories."""
    path = tmp_path_factory.mktemp("small") / "small.py"
    path.write_text(SMALL_MODELS)
    return path


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of the included photos. Read only."""
    return save_crops(tmp_path_factory.mktemp("views"), 6)
