"""Accuracy on labeled images, of classifiers and of dense models alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from edgevit.bundles.labeled import DenseEvaluation, lost_points
from edgevit.errors import ImageError, UsageError
from edgevit.images import warn_of_skipped
from edgevit.metrics import Drop, Evaluation, OnImages, agreement, drop_points
from edgevit.types import Run
from edgevit.words import counted

_LOG = logging.getLogger(__name__)

AnyEvaluation: TypeAlias = Evaluation | DenseEvaluation


class LabeledSet(Protocol):
    """Labeled images, and how a model reads them."""

    @property
    def metric(self) -> str:
        """Name of the figure that is compared."""

    @property
    def count(self) -> int:
        """Number of images."""

    @property
    def batch(self) -> int:
        """Number of images in each call of a candidate."""

    @property
    def paths(self) -> Sequence[Path]:
        """The image files."""

    @property
    def strict(self) -> bool:
        """Whether an image that cannot be read is an error, instead of being left out."""

    def evaluate(
        self, candidates: Mapping[str, Run], *, progress: OnImages | None = None
    ) -> tuple[tuple[AnyEvaluation, ...], tuple[ImageError, ...]]:
        """Run all candidates on all images; return their evaluations, and the errors of images that were left out.

        Raises ImageError if an image cannot be read and the set is strict, or if none can.
        """

    def subset(self, limit: int) -> LabeledSet:
        """Return the set with at most `limit` images."""

    def with_batch(self, batch: int) -> LabeledSet:
        """Return the set for candidates with another batch."""


def lost(reference: AnyEvaluation, other: AnyEvaluation) -> Drop:
    """Return the accuracy that `other` loses against `reference` on the same images, in points."""
    if isinstance(reference, Evaluation) and isinstance(other, Evaluation):
        return drop_points(reference, other)
    if isinstance(reference, DenseEvaluation) and isinstance(other, DenseEvaluation):
        return lost_points(reference, other)
    raise UsageError(f"{reference.name} and {other.name} were evaluated for different tasks; evaluate them separately")


def same_predictions(reference: AnyEvaluation, other: AnyEvaluation) -> float | None:
    """Return the fraction of images with the same class; None for dense models, which have more than one answer."""
    if isinstance(reference, Evaluation) and isinstance(other, Evaluation):
        return agreement(reference, other)
    return None


def warn_of_labels(evaluation: AnyEvaluation, skipped: Sequence[ImageError], total: int) -> None:
    """Log the labels of `--eval` that an evaluation ignored, and the images that it left out, of `total`."""
    for note in evaluation.notes if isinstance(evaluation, DenseEvaluation) else ():
        _LOG.warning("edgevit: --eval: %s", note)
    warn_of_skipped("--eval", skipped, total)


def unknown_accuracy(reference: AnyEvaluation, name: str) -> str:
    """Return the remark that no loss against `reference`, called `name`, is known: it may be no better than chance."""
    measured = f"{reference.metric} {reference.accuracy:.1%} on {counted(reference.images, 'image')}"
    return f"accuracy unknown ({name} itself may be guessing: {measured})"
