"""Accuracy on labeled images, of classifiers and of dense models alike."""

from __future__ import annotations

from typing import TypeAlias

from edgevit.bundles.labeled import DenseEvaluation, lost_points
from edgevit.errors import UsageError
from edgevit.metrics import Drop, Evaluation, agreement, counted_images, drop_points

AnyEvaluation: TypeAlias = Evaluation | DenseEvaluation


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


def unknown_accuracy(reference: AnyEvaluation, name: str) -> str:
    """Return the remark that no loss against `reference`, called `name`, is known: it may be no better than chance."""
    measured = f"{reference.metric} {reference.accuracy:.1%} on {counted_images(reference.images)}"
    return f"accuracy unknown ({name} itself may be guessing: {measured})"
