"""Non-maximum suppression in NumPy, the same for all runtimes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevit.types import Array

_BLOCK = 4096  # candidates that are compared with all kept boxes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """The objects of one image, best first: boxes (n, 4) as x1, y1, x2, y2, scores (n,) and classes (n,)."""

    boxes: Array
    scores: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, min_score: float) -> Detections:
        """Return the objects of at least this score."""
        return self.at(self.scores >= min_score)

    def at(self, places: Array) -> Detections:
        """Return the objects at these indices, or those with True."""
        return Detections(boxes=self.boxes[places], scores=self.scores[places], labels=self.labels[places])


@dataclass(frozen=True, slots=True, kw_only=True)
class NmsOptions:
    """Limits of non-maximum suppression; the defaults are those of mmdet's RetinaNet."""

    min_score: float = 0.05  # a candidate has a higher score
    max_iou: float = 0.5  # a candidate that overlaps a better one by more is suppressed
    top_k: int | None = 100_000  # the best pairs of box and class that are looked at
    kept: int = 100
    class_agnostic: bool = False  # also suppress boxes of other classes


DEFAULT_NMS = NmsOptions()


def nms(boxes: Array, scores: Array, options: NmsOptions = DEFAULT_NMS) -> Detections:
    """Return the best boxes of one image that do not overlap, from `boxes` (n, 4) and `scores` (n, classes).

    Each pair of a box and a class is a candidate. Candidates are visited from the highest score on (of equal ones the
    first box, then the first class), and kept unless a kept box of the same class overlaps them by more than
    `max_iou`. It ends when `kept` are found, so most candidates are never compared with each other.
    """
    pairs = _best_pairs(scores, options)
    candidates = Detections(
        boxes=boxes[pairs // scores.shape[1]].astype(np.float64),
        scores=scores.reshape(-1)[pairs],
        labels=pairs % scores.shape[1],
    )
    return suppress(candidates, options)


def suppress(candidates: Detections, options: NmsOptions) -> Detections:
    """Return the candidates, given best first, that no better one suppresses, at most `kept`."""
    return candidates.at(np.array(_visit(candidates, options), np.intp))


def _best_pairs(scores: Array, options: NmsOptions) -> Array:
    """Return the flat indices of the scores above the threshold, best first, at most `top_k`."""
    flat = scores.reshape(-1)
    found = np.flatnonzero(flat > options.min_score)
    if options.top_k is not None and len(found) > options.top_k:
        values = flat[found]
        least = np.partition(values, len(found) - options.top_k)[len(found) - options.top_k]
        ties = np.flatnonzero(values == least)[: options.top_k - int((values > least).sum())]
        found = found[np.sort(np.concatenate([np.flatnonzero(values > least), ties]))]
    return np.asarray(found[np.argsort(-flat[found], kind="stable")])


def _visit(candidates: Detections, options: NmsOptions) -> list[int]:
    """Return the indices of the candidates, sorted by score, that are kept."""
    kept: list[int] = []
    for start in range(0, len(candidates), _BLOCK):
        alive = np.arange(start, min(start + _BLOCK, len(candidates)))
        for better in kept:
            alive = alive[~_suppressed(candidates, better, alive, options)]
        while len(alive) and len(kept) < options.kept:
            kept.append(int(alive[0]))
            alive = alive[1:][~_suppressed(candidates, kept[-1], alive[1:], options)]
        if len(kept) == options.kept:
            break
    return kept


def _suppressed(candidates: Detections, better: int, others: Array, options: NmsOptions) -> Array:
    """Return for each of `others` whether the kept candidate `better` suppresses it."""
    if options.class_agnostic:
        return np.asarray(iou(candidates.boxes[better], candidates.boxes[others]) > options.max_iou)
    suppressed = candidates.labels[others] == candidates.labels[better]  # comparing classes is cheaper than boxes
    rivals = others[suppressed]
    suppressed[suppressed] = iou(candidates.boxes[better], candidates.boxes[rivals]) > options.max_iou
    return np.asarray(suppressed)


def iou(box: Array, boxes: Array) -> Array:
    """Return the intersection over union of boxes, broadcast over all axes but the last; 0 for two boxes of no area."""
    low, high = np.maximum(box[..., :2], boxes[..., :2]), np.minimum(box[..., 2:], boxes[..., 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    union = _area(box) + _area(boxes) - common
    return np.asarray(np.divide(common, union, out=np.zeros(union.shape), where=union > 0))


def _area(boxes: Array) -> Array:
    return np.asarray(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1))
