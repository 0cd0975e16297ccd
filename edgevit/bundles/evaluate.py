"""Measure top-1 and top-5 accuracy of bundles and of PyTorch on a labeled dataset."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit import metrics
from edgevit.bundles.bundle import Bundle, display_names
from edgevit.bundles.engine import load_engine, require_precision
from edgevit.bundles.source_model import FROM_MANIFEST, PytorchSource, recreate_model
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
class _Candidate:
    """An open engine to evaluate, and how its inputs and outputs are to be read."""

    name: str
    engine: Engine
    batch: int
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    weights: str
    bundle: Bundle | None = None  # the bundle that the engine belongs to; None for PyTorch


def evaluate_bundles(
    bundles: Sequence[Bundle],
    *,
    data: Path,
    models: Sequence[LoadedModel] = (),
    against: Sequence[str] = (),
    source: PytorchSource = FROM_MANIFEST,
    threads: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    on_progress: OnImages | None = None,
) -> AccuracyReport:
    """Measure top-1 and top-5 of bundles, and of `models` in PyTorch, on the labeled images in `data`.

    The reference that the others are compared with is PyTorch if it takes part, as one of the `models` or by
    `against=["torch"]`, and the first bundle otherwise. `source` names the PyTorch model of the first bundle.
    `limit` caps the number of images, spread over the classes.

    Images that cannot be read are left out and named in the notes of the report; ImageError is raised for the first if
    `strict`, or if none can be read.

    Raises UsageError if the candidates preprocess images differently or have different classes, MissingError if
    PyTorch is needed and not installed.
    """
    if unknown := [name for name in against if name != TORCH]:
        raise UsageError(f"--against accepts only {TORCH}, got {unknown[0]!r}; pass other bundles as arguments")
    if against and not bundles:
        raise UsageError(f"--against {TORCH} needs a bundle; a model given by name runs in PyTorch already")
    with ExitStack() as stack:
        candidates = [_model_candidate(model, threads) for model in models]
        engines = [stack.enter_context(load_engine(bundle, threads=threads)) for bundle in bundles]
        if against:
            candidates.append(_source_candidate(bundles[0], engines[0], source, threads))
        candidates += [
            replace(_bundle_candidate(name, engine, bundle), bundle=bundle)
            for name, engine, bundle in zip(display_names(bundles), engines, bundles, strict=True)
        ]
        return _evaluate(candidates, data, limit, on_progress, strict=strict)


def _evaluate(
    candidates: Sequence[_Candidate], data: Path, limit: int | None, on_progress: OnImages | None, *, strict: bool
) -> AccuracyReport:
    first = candidates[0]
    class_count = metrics.class_count(first.engine)
    for other in candidates[1:]:
        _require_comparable(first, other)
    images = find_dataset(data, classes=first.classes, class_count=class_count)
    images = images if limit is None else images.sample(limit)
    skipped: list[ImageError] = []
    evaluations = metrics.evaluate(
        {each.name: metrics.in_own_batches(each.engine, each.batch) for each in candidates},
        images,
        first.preprocessing,
        batch=max(each.batch for each in candidates),
        precisions={each.name: _executed_precision(each).actual for each in candidates},
        progress=on_progress,
        on_skip=None if strict else skipped.append,
    )
    notes = [f"{each.name} has random weights: its accuracy means nothing" for each in candidates if _is_random(each)]
    unreadable = {error.path for error in skipped}
    notes += skipped_notes(skipped, len(images.paths))
    return AccuracyReport(
        paths=tuple(path for path in images.paths if path not in unreadable),
        description=images.description,
        evaluations=evaluations,
        notes=tuple(notes),
    )


def _executed_precision(candidate: _Candidate) -> ExecutedPrecision:
    if candidate.bundle is None:
        return candidate.engine.executed_precision()
    return require_precision(candidate.bundle, candidate.engine)


def _require_comparable(first: _Candidate, other: _Candidate) -> None:
    """Raise UsageError unless both read the same images in the same way and output the same classes."""
    if other.name == first.name:
        raise UsageError(f"{first.name} is given twice; give it once")
    if other.preprocessing != first.preprocessing:
        raise UsageError(
            f"{first.name} and {other.name} differ in preprocessing ({first.preprocessing} and "
            f"{other.preprocessing}); evaluate them separately"
        )
    counts = metrics.class_count(first.engine), metrics.class_count(other.engine)
    if other.classes != first.classes or counts[0] != counts[1]:
        raise UsageError(f"{first.name} and {other.name} have different classes; evaluate them separately")


def _is_random(candidate: _Candidate) -> bool:
    return candidate.weights.startswith("random")


def _bundle_candidate(name: str, engine: Engine, bundle: Bundle) -> _Candidate:
    dynamic = bundle.options.dynamic_batch
    return _Candidate(
        name=name,
        engine=engine,
        batch=dynamic.optimum if dynamic else bundle.options.batch,
        preprocessing=bundle.preprocessing,
        classes=bundle.classes,
        weights=bundle.manifest.model.weights,
    )


def _source_candidate(bundle: Bundle, engine: Engine, source: PytorchSource, threads: int | None) -> _Candidate:
    """PyTorch with the model that the bundle was exported from, with the engine's input and output names."""
    from edgevit.runtimes.pytorch import TorchEngine

    module = recreate_model(bundle, source).module
    return _bundle_candidate(TORCH, TorchEngine(module, engine.inputs, engine.outputs, threads=threads), bundle)


def _model_candidate(model: LoadedModel, threads: int | None) -> _Candidate:
    """PyTorch with a model given by name. Raises UsageError if its weights are random or it takes no images."""
    from edgevit.runtimes.pytorch import TorchEngine

    if model.origin.has_random_weights:
        raise UsageError(f"{model.name} has random weights, so its accuracy means nothing; give --weights FILE")
    if model.preprocessing is None:
        raise UsageError(f"{model.name} does not take images, and accuracy is measured on images")
    inputs = [TensorSpec(metrics.INPUT, "float32", ("batch", *model.preprocessing.input_size))]
    probe = TorchEngine(model.module, inputs, [TensorSpec(metrics.OUTPUT, "float32", ())], threads=threads)
    output = probe.run({metrics.INPUT: model.example[0].numpy()})[metrics.OUTPUT]
    outputs = [TensorSpec(metrics.OUTPUT, "float32", ("batch", *output.shape[1:]))]
    return _Candidate(
        name=f"{model.name} ({TORCH})",
        engine=TorchEngine(model.module, inputs, outputs, threads=threads),
        batch=model.batch,
        preprocessing=model.preprocessing,
        classes=model.classes,
        weights=model.origin.weights,
    )
