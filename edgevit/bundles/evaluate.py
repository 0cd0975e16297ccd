"""Measure top-1 and top-5 accuracy of bundles and of PyTorch on a labeled dataset."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit import metrics
from edgevit.bundles.bundle import Bundle, display_names, require_distinct
from edgevit.bundles.engine import load_engine, require_precision
from edgevit.bundles.source_model import PytorchSource, recreate_model
from edgevit.datasets import find_dataset
from edgevit.errors import ImageError, UsageError
from edgevit.images import Preprocessing, skipped_notes
from edgevit.metrics import AccuracyReport, OnImages
from edgevit.runtimes.base import Engine
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import TensorSpec

if TYPE_CHECKING:
    from edgevit.models.loading import LoadedModel

TORCH = "torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class _EvaluatedEngine:
    """An open engine to evaluate, and how its inputs and outputs are to be read."""

    name: str
    engine: Engine
    batch: int
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    lacks_checkpoint: bool
    bundle: Bundle | None = None  # None for PyTorch


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """How to evaluate: CPU threads, a limit of the images, and whether one that cannot be read is an error."""

    threads: int | None = None
    limit: int | None = None  # images, spread over the classes
    strict: bool = False


def evaluate_bundles(
    bundles: Sequence[Bundle],
    *,
    data: Path,
    models: Sequence[LoadedModel] = (),
    pytorch: PytorchSource | None = None,
    options: EvalOptions = EvalOptions(),  # frozen
    on_progress: OnImages | None = None,
) -> AccuracyReport:
    """Measure top-1 and top-5 of bundles, and of PyTorch, on the labeled images in `data`.

    PyTorch takes part with each of `models`, and with the model of the first bundle if `pytorch` says where to find
    that. The first PyTorch model is the reference that the others are compared with, or else the first bundle.
    Images that cannot be read are left out and named in the notes of the report.

    Raises UsageError if a candidate is given twice, or if they preprocess images differently or have different
    classes; MissingError if PyTorch is needed and not installed; ImageError if no image can be read, or one cannot and
    that is an error.
    """
    if pytorch is not None and not bundles:
        raise UsageError(f"--against {TORCH} needs a bundle; a model given by name runs in PyTorch already")
    names = display_names(bundles)
    require_distinct([*(_model_name(model) for model in models), *([] if pytorch is None else [TORCH]), *names])
    with ExitStack() as stack:
        candidates = [_model_candidate(model, options.threads) for model in models]
        engines = [stack.enter_context(load_engine(bundle, threads=options.threads)) for bundle in bundles]
        if pytorch is not None:
            candidates.append(_source_candidate(bundles[0], engines[0], pytorch, options.threads))
        candidates += [
            _bundle_candidate(name, engine, bundle)
            for name, engine, bundle in zip(names, engines, bundles, strict=True)
        ]
        return _evaluate(candidates, data, options, on_progress)


def _evaluate(
    candidates: Sequence[_EvaluatedEngine], data: Path, options: EvalOptions, on_progress: OnImages | None
) -> AccuracyReport:
    first = candidates[0]
    class_count = metrics.class_count(first.engine)
    for other in candidates[1:]:
        _require_comparable(first, other)
    images = find_dataset(data, classes=first.classes, class_count=class_count)
    images = images if options.limit is None else images.sample(options.limit)
    skipped: list[ImageError] = []
    evaluations = metrics.evaluate(
        {each.name: metrics.in_own_batches(each.engine, each.batch) for each in candidates},
        images,
        first.preprocessing,
        batch=max(each.batch for each in candidates),
        progress=on_progress,
        on_skip=None if options.strict else skipped.append,
    )
    notes = [
        f"{each.name} has random weights: its accuracy means nothing" for each in candidates if each.lacks_checkpoint
    ]
    unreadable = {error.path for error in skipped}
    notes += skipped_notes(skipped, len(images.paths))
    return AccuracyReport(
        paths=tuple(path for path in images.paths if path not in unreadable),
        description=images.description,
        evaluations=tuple(
            replace(evaluation, precision=_executed_precision(candidate).actual)
            for candidate, evaluation in zip(candidates, evaluations, strict=True)
        ),
        notes=tuple(notes),
    )


def _executed_precision(candidate: _EvaluatedEngine) -> ExecutedPrecision:
    if candidate.bundle is None:
        return candidate.engine.executed_precision()
    return require_precision(candidate.bundle, candidate.engine)


def _require_comparable(first: _EvaluatedEngine, other: _EvaluatedEngine) -> None:
    """Raise UsageError unless both read the same images in the same way and output the same classes."""
    if other.preprocessing != first.preprocessing:
        raise UsageError(
            f"{first.name} and {other.name} differ in preprocessing ({first.preprocessing} and "
            f"{other.preprocessing}); evaluate them separately"
        )
    counts = metrics.class_count(first.engine), metrics.class_count(other.engine)
    if other.classes != first.classes or counts[0] != counts[1]:
        raise UsageError(f"{first.name} and {other.name} have different classes; evaluate them separately")


def _bundle_candidate(name: str, engine: Engine, bundle: Bundle) -> _EvaluatedEngine:
    return _EvaluatedEngine(
        name=name,
        engine=engine,
        batch=bundle.options.batch_to_measure,
        preprocessing=bundle.preprocessing,
        classes=bundle.classes,
        lacks_checkpoint=bundle.manifest.model.lacks_checkpoint,
        bundle=bundle,
    )


def _source_candidate(bundle: Bundle, engine: Engine, source: PytorchSource, threads: int | None) -> _EvaluatedEngine:
    """PyTorch with the model that the bundle was exported from, with the engine's input and output names."""
    from edgevit.runtimes.pytorch import TorchEngine

    module = recreate_model(bundle, source).module
    torch = TorchEngine(module, engine.inputs, engine.outputs, threads=threads)
    return replace(_bundle_candidate(TORCH, torch, bundle), bundle=None)  # in PyTorch's precision, not the bundle's


def _model_name(model: LoadedModel) -> str:
    return f"{model.name} ({TORCH})"


def _model_candidate(model: LoadedModel, threads: int | None) -> _EvaluatedEngine:
    """PyTorch with a model given by name. Raises UsageError if its weights are random or it takes no images."""
    from edgevit.runtimes.pytorch import TorchEngine, output_specs

    if model.origin.has_random_weights:
        raise UsageError(f"{model.name} has random weights, so its accuracy means nothing; give --weights FILE")
    if model.preprocessing is None:
        raise UsageError(f"{model.name} does not take images, and accuracy is measured on images")
    inputs = [TensorSpec(metrics.INPUT, "float32", ("batch", *model.preprocessing.input_size))]
    outputs = output_specs(model.module, model.example)
    return _EvaluatedEngine(
        name=_model_name(model),
        engine=TorchEngine(model.module, inputs, outputs, threads=threads),
        batch=model.batch,
        preprocessing=model.preprocessing,
        classes=model.classes,
        lacks_checkpoint=model.origin.lacks_checkpoint,
    )
