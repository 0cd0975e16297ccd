"""Confidence intervals by drawing images again, with replacement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgevit.types import Array, Interval

RESAMPLES = 500
_CONFIDENCE = 0.95
_SEED = 0  # the same draws for every candidate, so that differences are paired


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure on all images, and the same figure on each resample of them, (RESAMPLES,)."""

    value: float
    resampled: Array

    @property
    def interval(self) -> Interval:
        """The 95 % percentile interval."""
        tail = 50 * (1 - _CONFIDENCE)
        low, high = np.nanpercentile(self.resampled, [tail, 100 - tail])
        return Interval(float(low), float(high))

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference to a figure on the same images; its interval is that of paired draws."""
        return Estimate(self.value - other.value, self.resampled - other.resampled)


def estimates(figures: Callable[[Array], Array], images: int) -> list[Estimate]:
    """Return figures of weights, (images,): how often each image is drawn. In all images each is there once."""
    draws = np.random.default_rng(_SEED)
    weights = draws.multinomial(images, np.full(images, 1 / images), RESAMPLES)
    resampled = np.stack([figures(each) for each in weights])
    return [
        Estimate(float(value), column)
        for value, column in zip(figures(np.ones(images, np.int64)), resampled.T, strict=True)
    ]
