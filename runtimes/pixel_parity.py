"""Agreement of segmentation outputs with PyTorch's: the best class of each pixel.

Pixels are judged as photos are by their top-1 class: only if the lead of PyTorch's best class is beyond the accepted
errors. The fraction over all pixels is reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevit.dense.outputs import LOGITS
from edgevit.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelAgreement:
    """The fraction of pixels with PyTorch's class: of all, and of those with a decided lead (None: there are none)."""

    all: float
    decided: float | None


def is_class_logits(name: str, output: Array) -> bool:
    """Return whether an output has the logits of each pixel, (N, classes, h, w)."""
    return name == LOGITS and output.ndim == 4 and output.shape[1] > 1


def logits_agreement(expected: Array, actual: Array, reversible_lead: float) -> PixelAgreement:
    """Compare the best classes of logits. A pixel is decided if PyTorch's lead is above `reversible_lead`."""
    same = expected.argmax(1) == actual.argmax(1)
    second, best = np.moveaxis(np.partition(expected, -2, axis=1)[:, -2:], 1, 0)
    with np.errstate(invalid="ignore"):  # of infinities, which fail by themselves
        decided = best - second > reversible_lead
    return PixelAgreement(all=float(same.mean()), decided=float(same[decided].mean()) if decided.any() else None)


def map_agreement(expected: Array, actual: Array) -> PixelAgreement:
    """Compare class maps, whose leads are not known: every pixel counts as decided."""
    same = float((expected == actual).mean())
    return PixelAgreement(all=same, decided=same)
