"""CIFAR-10 test images and the outputs of the authors' code for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit.images import IMAGENET_MEAN, IMAGENET_STD
from edgevit.types import Array

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Cifar10:
    """The first 2,000 test images as model input, their labels, and the logits of the authors' code."""

    inputs: Array  # (2000, 3, 32, 32) float32
    labels: Array  # (2000,)
    logits: Array  # (2000, 10)


def load_cifar10() -> Cifar10:
    with np.load(DATA / "cifar10_sample.npz") as sample:
        pixels = sample["test_images"].astype(np.float32) / 255
        normalized = (pixels - np.asarray(IMAGENET_MEAN, np.float32)) / np.asarray(IMAGENET_STD, np.float32)
        return Cifar10(
            np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)), sample["test_labels"], sample["test_logits"]
        )
