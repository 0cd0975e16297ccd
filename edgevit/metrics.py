"""Top-1, top-5, agreement and their confidence intervals.

The predicted class of every image and the rank of its true class are stored; accuracies and intervals are derived from
them. Logits of -inf exclude a class, as masks do; a prediction from any other logits that are not finite is wrong, and
is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgevit.datasets import ImageDataset
from edgevit.errors import ImageError, UsageError
from edgevit.images import OnSkip, Preprocessing, read_batch, read_readable
from edgevit.types import Array, Feeds, Interval, Run, RunnableEngine, TensorSpec

OnImages: TypeAlias = Callable[[int, int], None]  # images done, images in all

INPUT, OUTPUT = "images", "logits"  # names of the input and output of registered models
TOP1 = "top-1"
CONFIDENCE = 0.95  # of every interval in this module
NO_PREDICTION = -1  # the predicted class if the logits are unusable: see `is_usable`
ROUNDING = 1 + 1e-9  # fractions computed from percentages are off by their rounding
_Z = 1.959963984540054  # the 97.5th percentile of the normal distribution, for two-sided 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The predictions of one candidate for every image, and the accuracies derived from them."""

    name: str
    class_count: int
    labels: tuple[int, ...]
    predictions: tuple[int, ...]  # predicted classes; NO_PREDICTION if the logits are unusable
    ranks: tuple[int, ...]  # of the true classes, 0 is the best; class_count if there is no prediction
    precision: str = "unknown"  # the executed precision, as reported by the runtime

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether the predicted class is the true one, for each image."""
        return tuple(rank == 0 for rank in self.ranks)

    @property
    def not_finite(self) -> int:
        """The number of images whose logits are unusable."""
        return self.predictions.count(NO_PREDICTION)

    @property
    def top1(self) -> float:
        return sum(self.correct) / self.images

    @property
    def top5(self) -> float | None:
        """None with fewer than six classes, for which it is always 1."""
        return sum(rank < 5 for rank in self.ranks) / self.images if self.class_count > 5 else None

    @property
    def metric(self) -> str:
        """Name of the main figure; detectors and segmentation models have another (bundles.labeled)."""
        return TOP1

    @property
    def accuracy(self) -> float:
        """The main figure."""
        return self.top1

    @property
    def may_be_guessing(self) -> bool:
        """Whether the accuracy may be no better than chance."""
        return self.top1_interval.low <= 1 / self.class_count

    @property
    def top1_interval(self) -> Interval:
        return wilson(sum(self.correct), self.images)

    @property
    def top5_interval(self) -> Interval | None:
        return wilson(sum(rank < 5 for rank in self.ranks), self.images) if self.class_count > 5 else None


@dataclass(frozen=True, slots=True)
class Drop:
    """Accuracy lost against a reference on the same images, in percentage points; negative if it is gained."""

    points: float
    interval: Interval  # in points

    def __str__(self) -> str:
        return f"{self.points:.2f} ({self.interval.low:.2f} to {self.interval.high:.2f})"

    def exceeds(self, allowed: float) -> bool:
        """Return whether more is lost than a fraction that may be lost."""
        return self.points > 100 * allowed * ROUNDING

    def phrase(self, reference: str) -> str:
        """Return the loss against `reference` in words, such as "1.20 points below fp32" or "the same as fp32"."""
        if self.points == 0:
            return f"the same as {reference}"
        return f"{abs(self.points):.2f} points {'below' if self.points > 0 else 'above'} {reference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """Evaluations of several candidates on the same images; the first is the reference of the others."""

    paths: tuple[Path, ...]
    description: str  # how the classes of the images were found
    evaluations: tuple[Evaluation, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return every figure and the prediction for every image."""
        reference = self.evaluations[0]
        return {
            "how": self.description,
            "confidence": CONFIDENCE,
            "notes": list(self.notes),
            "paths": [str(path) for path in self.paths],
            "accuracy": [_figures(evaluation, reference) for evaluation in self.evaluations],
        }


def evaluate(
    candidates: Mapping[str, Run],
    images: ImageDataset,
    preprocessing: Preprocessing,
    *,
    batch: int = 1,
    progress: OnImages | None = None,
    on_skip: OnSkip | None = None,
) -> tuple[Evaluation, ...]:
    """Run every candidate on every image. Each image is read once, and all candidates get the same array.

    A candidate takes INPUT and returns OUTPUT; `with_common_names` and `in_own_batches` adapt others. Every call has
    exactly `batch` images, as engines with a fixed batch need; the last one is filled up by repetition. Images that
    cannot be read are left out and reported to `on_skip`. Raises ImageError if there is no `on_skip` for them, or if
    none can be read; UsageError if an output is not one row of logits per image.
    """
    found: dict[str, list[tuple[Array, Array]]] = {name: [] for name in candidates}
    done, total = 0, len(images.paths)
    read: list[Array] = []
    for photos, labels in _batches(images, preprocessing, batch, on_skip):
        read.append(labels)
        for name, run in candidates.items():
            output = run({INPUT: _filled(photos, batch)})[OUTPUT]
            logits = _require_logits(output, batch, images.class_count, name)[: len(labels)]
            found[name].append(_predict(logits, labels))
        done = min(done + batch, total)
        if progress is not None:
            progress(done, total)
    return tuple(
        Evaluation(
            name=name,
            class_count=images.class_count,
            labels=tuple(np.concatenate(read).tolist()),
            predictions=tuple(np.concatenate([predictions for predictions, _ in parts]).tolist()),
            ranks=tuple(np.concatenate([ranks for _, ranks in parts]).tolist()),
        )
        for name, parts in found.items()
    )


def with_common_names(run: Run, input_name: str, output_name: str) -> Run:
    """Return `run` with INPUT and OUTPUT as the names of its input and output."""
    return lambda feeds: {OUTPUT: run({input_name: feeds[INPUT]})[output_name]}


def in_own_batches(engine: RunnableEngine, batch: int) -> Run:
    """Return a function that runs `engine` with the common names of input and output, `batch` images at a time.

    It allows engines with different batch sizes and names to be evaluated side by side.
    """
    logits = find_logits(engine.outputs) or engine.outputs[0]

    def run(feeds: Feeds) -> dict[str, Array]:
        photos = feeds[INPUT]
        pieces = [
            engine.run({engine.inputs[0].name: _filled(photos[start : start + batch], batch)})[logits.name]
            for start in range(0, len(photos), batch)
        ]
        return {OUTPUT: np.concatenate(pieces)[: len(photos)]}

    return run


def class_count(engine: RunnableEngine) -> int:
    """Return the number of classes of an engine. Raises UsageError unless it maps one input to logits (N, classes)."""
    logits = find_logits(engine.outputs)
    if len(engine.inputs) != 1 or logits is None:
        raise UsageError(
            "accuracy needs one image input and logits (N, classes); the model has "
            f"{', '.join(map(str, engine.inputs))} and {engine.outputs[0]}"
        )
    return number_of_classes(logits)


def find_logits(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the output that holds an image classifier's logits: the one named so, or the first that can be logits.

    Logits are floats, (N, classes), of at least two classes. None if the model has none.
    """
    found = [each for each in outputs if each.dtype.startswith("float") and number_of_classes(each) > 1]
    named = (each for each in found if each.name == OUTPUT)
    return next(named, found[0] if found else None)


def number_of_classes(output: TensorSpec) -> int:
    """Return the number of columns of an output (N, classes), or 0 if it has another shape."""
    columns = output.shape[1] if len(output.shape) == 2 else 0
    return columns if isinstance(columns, int) else 0


def agreement(first: Evaluation, second: Evaluation) -> float:
    """Return the fraction of images with the same predicted class; without a prediction there is no agreement."""
    pairs = _paired(first, second)
    return sum(one == other != NO_PREDICTION for one, other in pairs) / len(pairs)


def drop_points(reference: Evaluation, other: Evaluation) -> Drop:
    """Return the top-1 that `other` loses against `reference`, with a 95 % interval.

    If of n images b are correct in the reference only and c in the other only, the drop is (b - c) / n. Its normal
    interval (McNemar's setting) has no width for b = c = 0, as if a few images proved equality. So half an image is
    added to each of the four cells first: "Wald+2" of Agresti and Min, Statistics in Medicine 24 (2005), 729-740.
    Raises UsageError if the two were evaluated on different images.
    """
    _paired(reference, other)
    pairs = list(zip(reference.correct, other.correct, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    count = len(pairs) + 2
    center = (lost - won) / count
    half = _Z * math.sqrt(lost + won + 1 - (lost - won) ** 2 / count) / count
    interval = Interval(100 * max(-1.0, center - half), 100 * min(1.0, center + half))
    return Drop(100 * (lost - won) / len(pairs), interval)


def wilson(correct: int, images: int) -> Interval:
    """Return the 95 % score interval of the fraction `correct / images`.

    Wilson, Journal of the American Statistical Association 22 (1927), 209-212; method 3 of Newcombe, Statistics in
    Medicine 17 (1998), 857-872.
    """
    fraction, spread = correct / images, _Z**2 / images
    center = (fraction + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(fraction * (1 - fraction) / images + spread / (4 * images)) / (1 + spread)
    return Interval(max(0.0, min(fraction, center - half)), min(1.0, max(fraction, center + half)))  # despite rounding


def _batches(
    images: ImageDataset, preprocessing: Preprocessing, batch: int, on_skip: OnSkip | None
) -> Iterator[tuple[Array, Array]]:
    """Yield images and their classes, at most `batch` at a time: (n, C, H, W) and (n,).

    Raises ImageError if no image can be read, or one cannot and `on_skip` is None.
    """
    if batch < 1 or not images.paths:
        raise UsageError(
            f"accuracy needs images and a batch of at least 1; got {len(images.paths)} images and a batch of {batch}"
        )
    labels = np.asarray(images.labels)
    skipped: list[ImageError] = []
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        if on_skip is None:
            yield read_batch(images.paths[part], preprocessing), labels[part]
            continue
        before = len(skipped)
        photos, places = read_readable(images.paths[part], preprocessing, skipped.append)
        for error in skipped[before:]:
            on_skip(error)
        if places:
            yield photos, labels[part][places]
    if len(skipped) == len(labels):
        raise skipped[0]


def _filled(photos: Array, batch: int) -> Array:
    """Return exactly `batch` photos; fewer are repeated from the first on."""
    return photos if len(photos) == batch else photos[np.arange(batch) % len(photos)]


def _require_logits(output: Array, batch: int, classes: int, name: str) -> Array:
    if output.shape != (batch, classes):
        raise UsageError(
            f"{name} returned shape {list(output.shape)} for {batch} images; accuracy needs logits [{batch}, {classes}]"
        )
    return output


def _predict(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the predicted classes and the ranks of the true ones; of equal logits the lower class ranks first."""
    classes = logits.shape[1]
    true = logits[np.arange(len(labels)), labels][:, None]  # (n, 1)
    before = (logits > true) | ((logits == true) & (np.arange(classes) < labels[:, None]))
    usable = is_usable(logits)
    return np.where(usable, logits.argmax(1), NO_PREDICTION), np.where(usable, before.sum(1), classes)


def is_usable(logits: Array) -> Array:
    """Return for each row of logits, (n, classes), whether it has a finite value and neither NaN nor +inf."""
    return np.asarray((logits < np.inf).all(1) & np.isfinite(logits).any(1))  # a comparison with NaN is false


def accuracy_key(metric: str) -> str:
    """Return the JSON key of an accuracy by its name."""
    return "top1" if metric == TOP1 else metric


def _paired(first: Evaluation, second: Evaluation) -> list[tuple[int, int]]:
    if first.labels != second.labels:
        raise UsageError(f"{first.name} and {second.name} were evaluated on different images; evaluate them together")
    return list(zip(first.predictions, second.predictions, strict=True))


def _figures(evaluation: Evaluation, reference: Evaluation) -> dict[str, Any]:
    first = evaluation is reference
    drop = None if first else drop_points(reference, evaluation)
    top5 = evaluation.top5_interval
    return {
        "name": evaluation.name,
        "precision": evaluation.precision,
        "images": evaluation.images,
        "top1": evaluation.top1,
        "top1_interval": asdict(evaluation.top1_interval),
        "top5": evaluation.top5,
        "top5_interval": None if top5 is None else asdict(top5),
        "not_finite": evaluation.not_finite,
        "agreement": None if first else agreement(reference, evaluation),
        "drop_points": None if drop is None else drop.points,
        "drop_points_interval": None if drop is None else asdict(drop.interval),
        "evidence": {"labels": evaluation.labels, "answers": evaluation.predictions, "ranks": evaluation.ranks},
    }
