"""The checks of the finalists against PyTorch, before one of them is recommended."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles.engine import load_engine, require_precision
from edgevit.bundles.verify import engine_parity
from edgevit.errors import EdgevitError, ImageError, MeasureError, ParityError
from edgevit.files import first_line
from edgevit.images import read_image
from edgevit.metrics import Drop
from edgevit.pipeline.accuracy import AnyEvaluation, LabeledSet, lost, unknown_accuracy, warn_of_labels
from edgevit.pipeline.export_run import ExportRun
from edgevit.pipeline.tuning.deadline import Deadline
from edgevit.pipeline.tuning.finals import Finalist
from edgevit.runtimes.base import Engine
from edgevit.runtimes.parity import ParityReport
from edgevit.words import counted

_MIN_IMAGES = 20  # labeled images; if there is no time for so many, or for all, accuracy is not measured
_EVAL_FRACTION = 0.5  # of the remaining time, for accuracy
_READ_S = 0.005  # to read and decode an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks of one finalist against PyTorch."""

    parity: ParityReport | None = None  # None if the engine did not run
    evaluation: AnyEvaluation | None = None
    drop: Drop | None = None  # of accuracy against PyTorch, on the labeled images
    failure: str = ""  # why it cannot be recommended
    error: type[EdgevitError] = ParityError  # the class of the failure

    @property
    def snr_db(self) -> float | None:
        results = self.parity.results if self.parity is not None else ()
        return min((result.snr_db for result in results), default=None)


def require_readable(dataset: LabeledSet | None) -> None:
    """Raise ImageError if no labeled image can be read, or the first cannot and the dataset is strict."""
    if dataset is None:
        return
    first: ImageError | None = None
    for path in dataset.paths[:1] if dataset.strict else dataset.paths:
        problem = _problem_of(path)
        if problem is None:
            return
        first = first or problem
    if first is not None:
        raise first


def _problem_of(path: Path) -> ImageError | None:
    """Return why an image cannot be read; None if it can."""
    try:
        read_image(path)
    except ImageError as error:
        return error
    return None


@dataclass(slots=True, kw_only=True)
class Examiner:
    """Checks finalists against PyTorch: parity on the reference inputs, and top-1 if there are labeled images."""

    export: ExportRun
    deadline: Deadline
    max_drop: float | None
    _dataset: LabeledSet | None = None
    _reference: AnyEvaluation | None = None  # PyTorch on `_dataset`

    def verify(self, finalist: Finalist, *, ms_per_image: float) -> Verification:
        """Open the bundle as its user will, and compare its outputs with PyTorch's.

        Raises ImageError for a labeled image that cannot be read, if the labeled images are strict.
        """
        try:
            with load_engine(finalist.bundle) as engine:
                require_precision(finalist.bundle, engine)
                parity = engine_parity(engine, self.export.references.outputs, finalist.bundle.options)
                if not parity.passed:
                    failures = next(result.failures for result in parity.results if not result.passed)
                    return Verification(parity=parity, failure=f"parity failed: {'; '.join(failures)}")
                return self._with_accuracy(Verification(parity=parity), engine, finalist, ms_per_image)
        except ImageError:
            raise  # of the labeled images, so no fault of the engine
        except EdgevitError as error:
            return Verification(failure=first_line(error), error=type(error))

    def _with_accuracy(
        self, verification: Verification, engine: Engine, finalist: Finalist, ms_per_image: float
    ) -> Verification:
        """Add the accuracy; a lower precision that may lose accuracy fails if there is no time to measure it."""
        dataset = self._labeled_images(ms_per_image, threads=finalist.configuration.threads)
        if dataset is None or self._reference is None:
            lower = finalist.configuration.variant.precision != "fp32"
            asked = lower and self.export.references.eval_dataset is not None
            failure = "no time to measure its accuracy; give more --time" if asked else ""
            return replace(verification, failure=failure, error=MeasureError)
        dataset = dataset.with_batch(finalist.bundle.options.batch)
        (evaluation,), _ = dataset.evaluate({finalist.configuration.name: engine.run})
        drop, allowed = lost(self._reference, evaluation), self.max_drop
        failure = ""
        if allowed is not None and drop.exceeds(allowed):
            failure = f"{evaluation.metric} drops by {drop.points:.2f} points, and {100 * allowed:g} are allowed"
        return replace(verification, evaluation=evaluation, drop=drop, failure=failure)

    def _labeled_images(self, ms_per_image: float, *, threads: int) -> LabeledSet | None:
        """Return the labeled images; as many as there is time for, the same for all finalists."""
        whole = self.export.references.eval_dataset
        if self._dataset is not None or whole is None:
            return self._dataset
        original = self.export.source.engine(self.export.captured, threads=threads)
        feeds = self.export.references.first_rows(whole.batch)
        original.run(feeds)  # the first run takes longer
        start = time.perf_counter()
        original.run(feeds)
        per_image_s = (time.perf_counter() - start) / whole.batch + 3 * ms_per_image / 1e3 + _READ_S
        count = math.floor(_EVAL_FRACTION * self.deadline.remaining_s / per_image_s)
        if count < min(_MIN_IMAGES, whole.count):
            return None
        self._dataset = whole.subset(count) if count < whole.count else whole
        (self._reference,), skipped = self._dataset.evaluate({self.export.source.title: original.run})
        warn_of_labels(self._reference, skipped, self._dataset.count)
        return self._dataset

    @property
    def images_note(self) -> str:
        """A note if accuracy was measured on a part of the images, or not at all."""
        whole = self.export.references.eval_dataset
        if whole is None or self._dataset is whole:
            return ""
        used = 0 if self._reference is None else self._reference.images
        return f"accuracy is of {used} of {whole.count} labeled images, for lack of time"

    def warnings(self, winner: Verification) -> list[str]:
        """Return notes if the labeled images are too few, or the original is too poor on them, to show the accuracy."""
        reference, drop, allowed = self._reference, winner.drop, self.max_drop
        if reference is None or drop is None:
            return []
        advice = "give more images with --eval"
        if reference.may_be_guessing:
            return [f"{unknown_accuracy(reference, 'the original')}; {advice}"]
        if allowed is not None and drop.interval.high > 100 * allowed:
            are = "is" if reference.images == 1 else "are"
            few = f"on {counted(reference.images, 'image')}, which {are} too few to show it"
            loss = f"the loss may be up to {drop.interval.high:.1f} points"
            return [f"--max-drop {100 * allowed:g}% holds {few}: {loss}; {advice}"]
        return []
