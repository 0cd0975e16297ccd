"""ReferenceData: reference outputs, calibration inputs and the labeled set of one export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.datasets import ImageDataset, find_dataset
from edgevit.errors import ExportError, ImageError, UsageError
from edgevit.images import Preprocessing, find_images
from edgevit.metrics import (
    TOP1,
    Evaluation,
    OnImages,
    evaluate,
    find_logits,
    number_of_classes,
    with_common_names,
)
from edgevit.models.description import ModelDescription
from edgevit.pipeline.accuracy import LabeledSet
from edgevit.pipeline.labeled_dense import find_dense_dataset
from edgevit.runtimes.parity import undefined_output
from edgevit.types import DENSE_TASKS, Array, Reference, Run, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDataset:
    """Labeled images and how a model reads them."""

    images: ImageDataset
    preprocessing: Preprocessing
    batch: int
    input_name: str
    output_name: str
    strict: bool

    @property
    def metric(self) -> str:
        """Name of the figure that is compared."""
        return TOP1

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The image files."""
        return self.images.paths

    def evaluate(
        self, candidates: Mapping[str, Run], *, progress: OnImages | None = None
    ) -> tuple[tuple[Evaluation, ...], tuple[ImageError, ...]]:
        """Run all candidates on all images; return their evaluations, and the errors of images that were left out.

        Raises ImageError if an image cannot be read and the dataset is strict, or if none can.
        """
        skipped: list[ImageError] = []
        evaluations = evaluate(
            {name: with_common_names(run, self.input_name, self.output_name) for name, run in candidates.items()},
            self.images,
            self.preprocessing,
            batch=self.batch,
            progress=progress,
            on_skip=None if self.strict else skipped.append,
        )
        return evaluations, tuple(skipped)

    def subset(self, limit: int) -> EvalDataset:
        """Return the dataset with at most `limit` images, spread over the classes."""
        return replace(self, images=self.images.sample(limit))

    def with_batch(self, batch: int) -> EvalDataset:
        """Return the dataset for candidates with another batch."""
        return replace(self, batch=batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceData:
    """The inputs and outputs that all stages of one export are checked with."""

    outputs: tuple[Reference, ...]  # of the model itself; photos first if the model takes photos
    calibration: Mapping[str, Array]  # inputs for choosing fp16 and int8, each (rows, ...)
    eval_dataset: LabeledSet | None

    def first_rows(self, batch: int) -> dict[str, Array]:
        """Return `batch` copies of the first reference input."""
        return {name: array[[0] * batch] for name, array in self.outputs[0].inputs.items()}


def find_eval_dataset(
    model: ModelDescription, folder: Path, outputs: Sequence[TensorSpec], *, batch: int, strict: bool
) -> LabeledSet:
    """Return the labeled images in `folder` for `model`. Raises UsageError if its outputs have no labels."""
    if model.origin.task in DENSE_TASKS:
        return find_dense_dataset(model, folder, outputs, batch=batch, strict=strict)
    logits = find_logits(outputs)
    if model.preprocessing is None or logits is None:
        raise UsageError(f"--eval needs an image classifier; {model.name} outputs {outputs[0]}")
    return EvalDataset(
        images=find_dataset(folder, classes=model.classes, class_count=number_of_classes(logits)),
        preprocessing=model.preprocessing,
        batch=batch,
        input_name=model.input_names[0],
        output_name=logits.name,
        strict=strict,
    )


def require_images(model: ModelDescription, images: Path | None) -> None:
    """Raise UsageError if `images` holds no photo, or is given for a model without an image input."""
    if images is not None and model.preprocessing is None:
        raise UsageError(f"--images needs a model with one image input; {model.name} has none and is checked on noise")
    if images is not None:
        find_images(images)


def require_defined(
    references: Sequence[Reference], *, title: str, undefined_weights: Callable[[], Sequence[str]]
) -> None:
    """Raise ExportError if the model's own outputs are NaN or infinite, with the weights to blame if there are any.

    `title` says what computed the outputs. `undefined_weights` returns the names of weights that hold NaN or +inf.
    """
    reason = undefined_output(references, strict=True)
    if not reason:
        return
    weights = undefined_weights()
    if weights:
        others = f" and {len(weights) - 1} more hold" if len(weights) > 1 else " holds"
        remedy = f"{weights[0]}{others} NaN or infinity: give other weights"
    elif reason := undefined_output(references):
        remedy = "look in forward() for a division by zero, an overflow, or the root or logarithm of a negative number"
    else:
        return
    raise ExportError(f"no engine can be compared with the outputs of {title}: {reason}; {remedy}")
