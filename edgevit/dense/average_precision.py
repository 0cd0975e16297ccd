"""Average precision as COCO measures it: objects are matched by pycocotools, and images are drawn again from there."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevit.dense.bootstrap import Estimate, estimates
from edgevit.errors import MissingError
from edgevit.types import Array

IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Matches:
    """The detections of one class in all images, best first, and what became of them.

    `image` (n,): index of the image; `hit` and `ignored` (IoU thresholds, n): whether it matched an object or a crowd,
    and whether that was a crowd, so that it counts neither for nor against. `objects` (images,): how many there are.
    """

    image: Array
    hit: Array
    ignored: Array
    objects: Array


def match(dataset: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[Matches]:
    """Match results with the objects of a COCO dataset; one entry for each category.

    `dataset` has COCO's images, categories and annotations. Raises MissingError without pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingError("pycocotools is not installed; pip install 'edgevit[coco]'") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth, found = COCO(), COCO()
        truth.dataset = dataset
        truth.createIndex()
        found.dataset = dataset | {"annotations": _as_annotations(results)}
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    images = len(evaluation.params.imgIds)
    return [
        _of_class(evaluation.evalImgs[start : start + images]) for start in range(0, len(evaluation.evalImgs), images)
    ]


def _as_annotations(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**each, "id": number, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3]}
        for number, each in enumerate(results, 1)
    ]


def _of_class(images: Sequence[dict[str, Any] | None]) -> Matches:
    """Gather one class from what pycocotools found in each image; None is an image without it."""
    there = [(index, each) for index, each in enumerate(images) if each is not None]
    scores = np.concatenate([[], *(each["dtScores"] for _, each in there)])
    order = np.argsort(-scores, kind="stable")
    wide = np.zeros((len(IOUS), 0))
    objects = np.zeros(len(images), np.int64)
    for index, each in there:
        objects[index] = np.count_nonzero(np.asarray(each["gtIgnore"]) == 0)
    return Matches(
        image=np.concatenate([[], *(np.full(len(each["dtScores"]), index) for index, each in there)]).astype(np.intp)[
            order
        ],
        hit=np.concatenate([wide, *(each["dtMatches"] for _, each in there)], 1)[:, order] > 0,
        ignored=np.concatenate([wide, *(each["dtIgnore"] for _, each in there)], 1)[:, order] > 0,
        objects=objects,
    )


def mean_average_precisions(classes: Sequence[Matches]) -> dict[str, Estimate]:
    """Return COCO's AP over all IoU thresholds, AP50 and AP75, each the mean over the classes that have objects.

    Every resample is the mean over the same classes: one without an object of a class has its AP on all images.
    """
    images = len(classes[0].objects)
    present = [each for each in classes if each.objects.any()]
    on_all_images = [_average_precisions(each, np.ones(images, np.int64)) for each in present]

    def figures(weights: Array) -> Array:
        found = [
            _average_precisions(each, weights) if weights @ each.objects else undrawn
            for each, undrawn in zip(present, on_all_images, strict=True)
        ]
        mean = np.mean(found, axis=0) if found else np.full(len(IOUS), np.nan)
        return np.array([mean.mean(), mean[0], mean[5]])

    return dict(zip(("mAP", "AP50", "AP75"), estimates(figures, images), strict=True))


def _average_precisions(matches: Matches, weights: Array) -> Array:
    """Return the mean precision at 101 recalls, (IoU thresholds,), of images drawn `weights` times."""
    drawn = weights[matches.image]
    right = np.cumsum(drawn * (matches.hit & ~matches.ignored), 1)
    wrong = np.cumsum(drawn * ~matches.hit, 1)
    precision = right / np.maximum(right + wrong, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # the best at this recall or a higher one
    recall = right / int(weights @ matches.objects)
    rows, count = recall.shape
    offsets = 2.0 * np.arange(rows)[:, None]  # one sorted array of all rows, whose recalls are at most 1
    places = np.searchsorted((recall + offsets).ravel(), (_RECALLS + offsets).ravel()).reshape(rows, -1)
    padded = np.concatenate([precision, np.zeros((rows, 1))], 1)  # recalls that are not reached
    return np.asarray(np.take_along_axis(padded, places - count * np.arange(rows)[:, None], 1).mean(1))
