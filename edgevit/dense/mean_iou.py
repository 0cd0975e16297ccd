"""Mean intersection over union of segmentation, from pixels counted image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevit.dense.bootstrap import Estimate, estimates
from edgevit.dense.masks import IGNORED
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """Pixels of each class in one image, each (classes,): found and true, found, true; and the number of the others."""

    common: Array
    found: Array
    true: Array
    ignored: int


def count_pixels(found: Array, true: Array, class_count: int) -> PixelCounts:
    """Count the pixels of a class map and of its true mask, both (H, W); IGNORED marks pixels without a class."""
    judged = true != IGNORED
    found, true = found[judged], true[judged]
    return PixelCounts(
        common=np.bincount(true[found == true], minlength=class_count)[:class_count],
        found=np.bincount(found, minlength=class_count)[:class_count],
        true=np.bincount(true, minlength=class_count)[:class_count],
        ignored=int(judged.size - judged.sum()),
    )


def mean_iou_and_accuracy(counts: list[PixelCounts]) -> tuple[Estimate, Estimate]:
    """Return mIoU and the fraction of pixels with their true class.

    mIoU is the mean, over the classes that occur, of common pixels over those that either has, in all images together.
    """
    common, either = _stacked(counts)
    true = np.stack([each.true for each in counts])

    def figures(weights: Array) -> Array:
        shared, union = weights @ common, weights @ either
        occurs = union > 0
        mean = (shared[occurs] / union[occurs]).mean() if occurs.any() else np.nan
        return np.array([mean, shared.sum() / max(1, (weights @ true).sum())])

    first, second = estimates(figures, len(counts))
    return first, second


def class_ious(counts: list[PixelCounts]) -> list[float | None]:
    """Return the intersection over union of each class; None if it does not occur."""
    common, either = (each.sum(0) for each in _stacked(counts))
    return [float(one / two) if two else None for one, two in zip(common, either, strict=True)]


def _stacked(counts: list[PixelCounts]) -> tuple[Array, Array]:
    """Return the common pixels and those that either has, both (images, classes)."""
    common = np.stack([each.common for each in counts])
    either = np.stack([each.found + each.true - each.common for each in counts])
    return common, either
