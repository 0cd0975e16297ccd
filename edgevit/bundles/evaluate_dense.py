"""Measure mAP of detectors and mIoU of segmentation models, and of PyTorch, on the same labeled photos."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgevit.bundles.bundle import Bundle, display_names, require_distinct
from edgevit.bundles.dense import DenseModel, dense_model
from edgevit.bundles.engine import load_engine, require_precision
from edgevit.bundles.evaluate import TORCH, EvalOptions
from edgevit.bundles.labeled import DenseEvaluation, evaluate_models, labeled_photos
from edgevit.bundles.source_model import PytorchSource, recreate_model
from edgevit.dense.bootstrap import RESAMPLES, Estimate
from edgevit.dense.outputs import class_count
from edgevit.errors import UsageError
from edgevit.images import skipped_notes
from edgevit.metrics import OnImages
from edgevit.types import DENSE_TASKS, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseReport:
    """Evaluations on the same photos; the first is the reference of the others."""

    images: int
    description: str
    evaluations: tuple[DenseEvaluation, ...]
    notes: tuple[str, ...]

    def lost(self, evaluation: DenseEvaluation) -> Estimate:
        """Return how much of the main figure is lost against the first candidate, with the interval of paired draws."""
        return self.evaluations[0].main.minus(evaluation.main)

    def to_json(self) -> dict[str, Any]:
        return {
            "how": self.description,
            "images": self.images,
            "resamples": RESAMPLES,
            "notes": list(self.notes),
            "accuracy": [self._to_json(each) for each in self.evaluations],
        }

    def _to_json(self, evaluation: DenseEvaluation) -> dict[str, Any]:
        figures = {
            name: {"value": each.value, "interval": asdict(each.interval)} for name, each in evaluation.figures.items()
        }
        lost = self.lost(evaluation)
        compared = {} if evaluation is self.evaluations[0] else {"lost": _lost_json(lost.value, lost.interval)}
        return {
            "name": evaluation.name,
            "precision": evaluation.precision,
            **figures,
            **compared,
            **evaluation.details,
        }


def _lost_json(value: float, interval: Interval) -> dict[str, Any]:
    return {"value": value, "interval": asdict(interval)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _EvaluatedModel:
    """A detector or a segmentation model to evaluate, in an engine or in PyTorch."""

    name: str
    model: DenseModel
    precision: str
    lacks_checkpoint: bool


def evaluate_dense(
    bundles: Sequence[Bundle],
    *,
    data: Path,
    pytorch: PytorchSource | None = None,
    options: EvalOptions = EvalOptions(),  # noqa: B008  # frozen
    reduce_zero_label: bool = False,
    on_progress: OnImages | None = None,
) -> DenseReport:
    """Measure bundles of one task, and PyTorch with the model of the first if `pytorch` says where to find it.

    Detectors: mAP on a folder in COCO's format. Segmentation: mIoU on folders of images and masks. Intervals come
    from drawing the images again. Raises UsageError if a bundle is given twice, or if they differ in task,
    preprocessing or classes; MissingError without pycocotools or PyTorch if they are needed; ImageError if no image
    can be read.
    """
    first = bundles[0]
    names = display_names(bundles)
    require_distinct([*([] if pytorch is None else [TORCH]), *names])
    _require_comparable(bundles)
    with ExitStack() as stack:
        engines = [stack.enter_context(load_engine(bundle, threads=options.threads)) for bundle in bundles]
        candidates = [
            _EvaluatedModel(
                name=name,
                model=dense_model(bundle, engine),
                precision=require_precision(bundle, engine).actual,
                lacks_checkpoint=bundle.manifest.model.lacks_checkpoint,
            )
            for name, bundle, engine in zip(names, bundles, engines, strict=True)
        ]
        if pytorch is not None:
            candidates.insert(0, _pytorch(first, candidates[0], pytorch, options.threads))
        photos = labeled_photos(
            data,
            first.manifest.model.task,
            classes=first.classes,
            class_count=_classes(first),
            reduce_zero_label=reduce_zero_label,
        ).sample(options.limit)
        found, skipped = evaluate_models(
            {each.name: each.model for each in candidates}, photos, strict=options.strict, on_progress=on_progress
        )
    notes = [
        f"{each.name} has random weights: its accuracy means nothing" for each in candidates if each.lacks_checkpoint
    ]
    return DenseReport(
        images=found[0].images,
        description=photos.description,
        evaluations=tuple(
            replace(evaluation, precision=each.precision) for evaluation, each in zip(found, candidates, strict=True)
        ),
        notes=(*notes, *found[0].notes, *skipped_notes(skipped, len(photos.paths))),
    )


def _pytorch(bundle: Bundle, candidate: _EvaluatedModel, source: PytorchSource, threads: int | None) -> _EvaluatedModel:
    from edgevit.runtimes.pytorch import TorchEngine

    engine = candidate.model.engine
    torch = TorchEngine(recreate_model(bundle, source).module, engine.inputs, engine.outputs, threads=threads)
    return replace(candidate, name=TORCH, model=dense_model(bundle, torch), precision=torch.executed_precision().actual)


def _require_comparable(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    for other in bundles:
        if other.manifest.model.task not in DENSE_TASKS:
            raise UsageError(f"{other.name} is for {other.manifest.model.task}; evaluate it separately")
    for other in bundles[1:]:
        for what, one, two in (
            ("task", first.manifest.model.task, other.manifest.model.task),
            ("preprocessing", first.preprocessing, other.preprocessing),
            ("classes", first.classes, other.classes),
            ("number of classes", _classes(first), _classes(other)),
        ):
            if one != two:
                raise UsageError(f"{first.name} and {other.name} differ in their {what}; evaluate them separately")


def _classes(bundle: Bundle) -> int:
    """Return the number of classes. Raises UsageError if neither the outputs nor the names say."""
    count = class_count(bundle.manifest.outputs, bundle.manifest.model.output_form) or len(bundle.classes or ())
    if not count:
        raise UsageError(f"{bundle.name} does not say how many classes it has; export it with --classes FILE")
    return count
