"""The labeled set of an export of a detector or a segmentation model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevit.bundles.dense import DenseModel
from edgevit.bundles.labeled import DenseEvaluation, LabeledPhotos, evaluate_models, labeled_photos
from edgevit.dense.outputs import class_count
from edgevit.errors import ImageError, UsageError
from edgevit.images import Preprocessing, warn_of_skipped
from edgevit.metrics import OnImages
from edgevit.models.description import ModelDescription
from edgevit.runtimes.base import BuildOptions
from edgevit.types import Array, Feeds, OutputForm, Run, TensorSpec

_LOG = logging.getLogger(__name__)

_FORMS: Mapping[str, tuple[OutputForm, ...]] = {"detection": ("boxes", "nms"), "segmentation": ("logits", "classes")}


@dataclass(slots=True)
class _RunnableGraph:
    """A candidate of an export as an engine: its interface is that of the model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compute: Run

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return dict(self.compute(feeds))


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseEvalDataset:
    """Labeled photos, and how a detector or a segmentation model reads them."""

    photos: LabeledPhotos
    preprocessing: Preprocessing
    form: OutputForm
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int
    strict: bool
    unreadable: dict[str, ImageError] = field(default_factory=dict)  # left out by `evaluate`, by message
    label_notes: dict[str, None] = field(default_factory=dict)  # of `evaluate`, in order

    @property
    def metric(self) -> str:
        """Name of the figure that is compared."""
        return self.photos.metric

    @property
    def count(self) -> int:
        """Number of photos."""
        return len(self.photos.paths)

    def evaluate(
        self, candidates: Mapping[str, Run], *, progress: OnImages | None = None
    ) -> tuple[DenseEvaluation, ...]:
        """Run all candidates on all photos that can be read.

        Raises ImageError if one cannot and the dataset is strict, or if none can.
        """
        models = {name: self._model(run) for name, run in candidates.items()}
        found, skipped = evaluate_models(models, self.photos, strict=self.strict, on_progress=progress)
        self.unreadable.update((str(error), error) for error in skipped)
        self.label_notes.update(dict.fromkeys(found[0].notes))
        return found

    def subset(self, limit: int) -> DenseEvalDataset:
        """Return the dataset with at most `limit` photos."""
        return replace(self, photos=self.photos.sample(limit))

    def warn_of_unreadable(self) -> None:
        """Log the photos and pixels that were left out."""
        for note in self.label_notes:
            _LOG.warning("edgevit: --eval: %s", note)
        warn_of_skipped("--eval", tuple(self.unreadable.values()), self.count)

    def _model(self, run: Run) -> DenseModel:
        return DenseModel(
            engine=_RunnableGraph(self.inputs, self.outputs, run),
            options=BuildOptions(batch=self.batch),
            preprocessing=self.preprocessing,
            form=self.form,
        )


def find_dense_dataset(
    model: ModelDescription, folder: Path, outputs: Sequence[TensorSpec], *, batch: int, strict: bool
) -> DenseEvalDataset:
    """Return the labeled photos in `folder`: COCO's format for a detector, images and masks for segmentation.

    Raises UsageError if the outputs cannot be compared with labels, or the folder has no such photos.
    """
    task, form, preprocessing = model.origin.task, model.origin.output_form, model.preprocessing
    if form not in _FORMS[task]:
        raise UsageError(f"--eval needs {task} outputs; use --outputs {' or '.join(_FORMS[task])}, not {form}")
    if preprocessing is None or preprocessing.resize == "crop":
        raise UsageError(f"--eval needs photos that are not cropped; add --resize-mode fit for {model.name}")
    count = class_count(outputs, form) or len(model.classes or ())
    if not count:
        raise UsageError(f"{model.name} does not say how many classes it has; add --classes FILE")
    return DenseEvalDataset(
        photos=labeled_photos(folder, task, classes=model.classes, class_count=count),
        preprocessing=preprocessing,
        form=form,
        inputs=tuple(model.inputs),
        outputs=tuple(outputs),
        batch=batch,
        strict=strict,
    )
