"""How often engines are right on labelled images, side by side, and how sure that is.

The evidence is every image's predicted class and the rank of its true one; shares and intervals follow from it. An
answer that holds NaN or infinity is wrong, whatever stands beside it, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgevit.datasets import LabelledImages
from edgevit.errors import UsageError
from edgevit.images import Preprocessing, read_batch
from edgevit.types import Array, Feeds, Interval, Run, RunnableEngine

OnImages: TypeAlias = Callable[[int, int], None]  # images done, images in all

INPUT, OUTPUT = "images", "logits"  # as registered models name theirs
CONFIDENCE = 0.95  # of every interval here
NO_ANSWER = -1  # the predicted class where the answer holds NaN or infinity
_Z = 1.959963984540054  # the 97.5th percentile of the normal distribution: two sides of 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One candidate's answers to every image: the evidence, and the shares that follow from it."""

    name: str
    precision: str  # that runs, as far as the runtime tells
    class_count: int
    labels: tuple[int, ...]
    answers: tuple[int, ...]  # the predicted class; NO_ANSWER where it holds NaN or infinity
    ranks: tuple[int, ...]  # of the true class, 0 the best; class_count where there is no answer

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> tuple[bool, ...]:
        """For each image whether the predicted class is the true one."""
        return tuple(rank == 0 for rank in self.ranks)

    @property
    def not_finite(self) -> int:
        """The answers that hold NaN or infinity."""
        return self.answers.count(NO_ANSWER)

    @property
    def top1(self) -> float:
        return sum(self.right) / self.images

    @property
    def top5(self) -> float | None:
        """None with fewer than six classes, where it says nothing."""
        return sum(rank < 5 for rank in self.ranks) / self.images if self.class_count > 5 else None

    @property
    def top1_interval(self) -> Interval:
        return wilson(sum(self.right), self.images)

    @property
    def top5_interval(self) -> Interval | None:
        return wilson(sum(rank < 5 for rank in self.ranks), self.images) if self.class_count > 5 else None


@dataclass(frozen=True, slots=True)
class Drop:
    """Top-1 lost against a reference on the same images, in percentage points; below 0 where it is gained."""

    points: float
    interval: Interval  # in points

    def __str__(self) -> str:
        return f"{self.points:.2f} ({self.interval.low:.2f} to {self.interval.high:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """Several candidates on the same images; the first is the reference of the others."""

    paths: tuple[Path, ...]
    how: str  # the classes of the images were found
    evaluations: tuple[Evaluation, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Every figure, and every image's answer."""
        reference = self.evaluations[0]
        return {
            "how": self.how,
            "confidence": CONFIDENCE,
            "notes": list(self.notes),
            "paths": [str(path) for path in self.paths],
            "accuracy": [_figures(evaluation, reference) for evaluation in self.evaluations],
        }


def evaluate(
    candidates: Mapping[str, Run],
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch: int = 1,
    input_name: str = INPUT,
    output_name: str = OUTPUT,
    precisions: Mapping[str, str] | None = None,
    progress: OnImages | None = None,
) -> tuple[Evaluation, ...]:
    """Asks every candidate about every image; each image is read once, and all are given the same array.

    Every call holds exactly `batch` images, the last filled up by starting over, as engines with a fixed batch need.
    `precisions` names what each candidate runs in, for the record. Raises ImageError for the first image that cannot
    be read, UsageError where an answer is not one row of logits an image.
    """
    found: dict[str, list[tuple[Array, Array]]] = {name: [] for name in candidates}
    done, total = 0, len(images.paths)
    for photos, labels in _batches(images, preprocessing, batch):
        for name, run in candidates.items():
            answer = run({input_name: _filled(photos, batch)})[output_name]
            found[name].append(_judged(_logits(answer, batch, images.class_count, name)[: len(labels)], labels))
        done += len(labels)
        if progress is not None:
            progress(done, total)
    return tuple(
        Evaluation(
            name=name,
            precision=(precisions or {}).get(name, "unknown"),
            class_count=images.class_count,
            labels=images.labels,
            answers=tuple(np.concatenate([answers for answers, _ in parts]).tolist()),
            ranks=tuple(np.concatenate([ranks for _, ranks in parts]).tolist()),
        )
        for name, parts in found.items()
    )


def in_own_batches(engine: RunnableEngine, batch: int) -> Run:
    """An engine under the common names of input and output, asked `batch` images at a time whatever it is given.

    So engines with different batches and names can be evaluated side by side.
    """

    def run(feeds: Feeds) -> dict[str, Array]:
        photos = feeds[INPUT]
        pieces = [
            engine.run({engine.inputs[0].name: _filled(photos[start : start + batch], batch)})[engine.outputs[0].name]
            for start in range(0, len(photos), batch)
        ]
        return {OUTPUT: np.concatenate(pieces)[: len(photos)]}

    return run


def class_count(engine: RunnableEngine) -> int:
    """The classes that an engine tells apart. Raises UsageError where it takes no photos or answers no classes."""
    shape = engine.outputs[0].shape
    classes = shape[1] if len(shape) == 2 else None
    if len(engine.inputs) != 1 or not isinstance(classes, int) or classes < 2:
        raise UsageError(
            f"the model takes {', '.join(map(str, engine.inputs))} and answers {engine.outputs[0]}: "
            "accuracy is of classes, (images, classes), from one input"
        )
    return classes


def agreement(first: Evaluation, second: Evaluation) -> float:
    """The share of the images with the same predicted class; two answers that are not finite do not agree."""
    pairs = _paired(first, second)
    return sum(one == other != NO_ANSWER for one, other in pairs) / len(pairs)


def drop_points(reference: Evaluation, other: Evaluation) -> Drop:
    """What `other` loses against `reference`, with an interval from the images that only one of them has right.

    With b images that the reference alone has right, and c that the other alone has, of n, the drop is (b - c) / n.
    Its plain normal interval (McNemar's setting) has no width where b = c = 0, as if a few images proved equality; so
    half an image is added to each of the four cells first: "Wald+2" of Agresti and Min, Statistics in Medicine 24
    (2005), 729-740.
    """
    _paired(reference, other)
    pairs = list(zip(reference.right, other.right, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    count = len(pairs) + 2
    centre = (lost - won) / count
    half = _Z * math.sqrt(lost + won + 1 - (lost - won) ** 2 / count) / count
    interval = Interval(100 * max(-1.0, centre - half), 100 * min(1.0, centre + half))
    return Drop(100 * (lost - won) / len(pairs), interval)


def wilson(right: int, images: int) -> Interval:
    """The 95 % score interval of a share.

    Wilson, Journal of the American Statistical Association 22 (1927), 209-212; method 3 of Newcombe, Statistics in
    Medicine 17 (1998), 857-872.
    """
    share, spread = right / images, _Z**2 / images
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))  # against rounding


def _batches(images: LabelledImages, preprocessing: Preprocessing, batch: int) -> Iterator[tuple[Array, Array]]:
    """The images and their classes, at most `batch` at a time: (n, C, H, W) and (n,)."""
    if batch < 1 or not images.paths:
        raise UsageError(f"accuracy needs images and a batch of at least 1, not {len(images.paths)} and {batch}")
    labels = np.asarray(images.labels)
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        yield read_batch(images.paths[part], preprocessing), labels[part]


def _filled(photos: Array, batch: int) -> Array:
    """Exactly `batch` photos, by starting over where there are fewer."""
    return photos if len(photos) == batch else photos[np.arange(batch) % len(photos)]


def _logits(answer: Array, batch: int, classes: int, name: str) -> Array:
    if answer.shape != (batch, classes):
        raise UsageError(
            f"{name} answers {list(answer.shape)} to {batch} images, not [{batch}, {classes}]: "
            "accuracy is of classes, one row an image"
        )
    return answer


def _judged(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The predicted class and the rank of the true one; between equal logits the lower class comes first."""
    classes = logits.shape[1]
    true = logits[np.arange(len(labels)), labels][:, None]  # (n, 1)
    before = (logits > true) | ((logits == true) & (np.arange(classes) < labels[:, None]))
    finite = np.isfinite(logits).all(1)
    return np.where(finite, logits.argmax(1), NO_ANSWER), np.where(finite, before.sum(1), classes)


def _paired(first: Evaluation, second: Evaluation) -> list[tuple[int, int]]:
    if first.labels != second.labels:
        raise UsageError(f"{first.name} and {second.name} were not asked about the same images; evaluate them together")
    return list(zip(first.answers, second.answers, strict=True))


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
        "evidence": {"labels": evaluation.labels, "answers": evaluation.answers, "ranks": evaluation.ranks},
    }
