"""Read the outputs of detectors and segmentation models: checked, and mapped to the photo's own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevit.dense.masks import class_map, nearest_classes
from edgevit.dense.nms import DEFAULT_NMS, Detections, NmsOptions, nms, suppress
from edgevit.errors import ParityError, UsageError
from edgevit.metrics import find_logits
from edgevit.placement import Placement
from edgevit.types import Array, Dim, OutputForm, TensorSpec

BOXES, SCORES, LABELS = "boxes", "scores", "labels"  # names of a detector's outputs
_MAX_CLASSES = 1 << 16  # of pixels; pictures and counts have one entry for each
LOGITS, CLASSES = "logits", "classes"  # of a segmentation model's


def class_count(outputs: Sequence[TensorSpec], form: OutputForm) -> int | None:
    """Return the number of classes of a model with these outputs; None if they do not say."""
    shape: tuple[Dim, ...] = ()
    if form == "boxes":
        shape = next((spec.shape[1:] for spec in outputs if spec.name == SCORES), ())
    elif form == "logits" and outputs:
        maps = (spec for spec in outputs if spec.name == LOGITS and len(spec.shape) == 4)
        shape = (next(maps, None) or find_logits(outputs) or outputs[0]).shape
    count = shape[1] if len(shape) in (2, 4) else None  # (N, K) or (N, K, h, w); (n, K) of a detector
    return count if isinstance(count, int) else None


def selected_count(outputs: Sequence[TensorSpec], form: OutputForm) -> int | None:
    """Return the number of boxes that a model selects in its graph; None if it leaves that to the caller."""
    shape = next((spec.shape for spec in outputs if form == "nms" and spec.name == SCORES), ())
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def is_class_map(name: str, output: Array | TensorSpec) -> bool:
    """Return whether an output has the class of each pixel, (N, H, W), whose numbers have no order.

    Its name says so: other integers of this shape, such as counts or labels of a tracker, are values.
    """
    return name == CLASSES and len(output.shape) == 3 and np.issubdtype(output.dtype, np.integer)


def detections(
    outputs: Mapping[str, Array], form: OutputForm, placement: Placement, options: NmsOptions = DEFAULT_NMS
) -> Detections:
    """Return the objects of the first image of a batch, in the photo's pixels.

    `form` "boxes": boxes (N, n, 4) and scores (N, n, classes), which are selected here. "nms": boxes, scores and
    labels (N, n) of a selection in the graph, padded with labels of -1, which only `class_agnostic` suppresses further.
    Raises UsageError for other outputs, ParityError if they contain NaN or infinity.
    """
    if form == "boxes":
        boxes, scores = _first(outputs, BOXES, (None, 4)), _first(outputs, SCORES, (None, None))
        _require_as_many(boxes, scores)
        found = nms(boxes, scores, options)
    elif form == "nms":
        boxes, scores, labels = (
            _first(outputs, name, shape) for name, shape in ((BOXES, (None, 4)), (SCORES, (None,)), (LABELS, (None,)))
        )
        _require_as_many(boxes, scores, labels)
        chosen = np.flatnonzero((labels >= 0) & (scores > options.min_score))
        selected = Detections(boxes=boxes, scores=scores, labels=labels.astype(np.int64))
        found = selected.at(chosen[np.argsort(-scores[chosen], kind="stable")])
        found = suppress(found, options) if options.class_agnostic else found.at(np.arange(len(found))[: options.kept])
    else:
        raise UsageError(f"a detector with the outputs {form!r} has no boxes; export it with --outputs boxes")
    return Detections(boxes=placement.boxes_to_photo(found.boxes), scores=found.scores, labels=found.labels)


def segmentation(outputs: Mapping[str, Array], form: OutputForm, placement: Placement) -> Array:
    """Return the class of each pixel of the photo, (H, W), for the first image of a batch.

    `form` "logits": the first output is (N, classes, h, w). "classes": it is (N, h, w). Raises UsageError for other
    outputs, ParityError if logits contain NaN or infinity.
    """
    name = next(iter(outputs))
    if form == "logits":
        logits = _first(outputs, name, (None, None, None))
        if len(logits) > _MAX_CLASSES:
            raise UsageError(f"the output {name} has {len(logits)} classes, at most {_MAX_CLASSES} are supported")
        return class_map(logits, placement)
    if form == "classes":
        classes = _first(outputs, name, (None, None))
        if classes.min() < 0 or classes.max() >= _MAX_CLASSES or (classes != np.floor(classes)).any():
            raise UsageError(f"the output {name} has values outside the classes 0 to {_MAX_CLASSES - 1}")
        return nearest_classes(classes.astype(np.uint16), placement)
    raise UsageError(f"a segmentation model with the outputs {form!r} has no masks; export it with --outputs logits")


def _first(outputs: Mapping[str, Array], name: str, shape: tuple[int | None, ...]) -> Array:
    """Return the first row of an output. Raises UsageError unless it has this shape, in which None is any size."""
    array = outputs.get(name)
    shown = ", ".join("n" if size is None else str(size) for size in ("N", *shape))
    if array is None:
        raise UsageError(f"the model has no output {name} ({shown}); it has {', '.join(outputs)}; export it again")
    fits = array.ndim == len(shape) + 1 and all(
        want in (None, size) and size > 0 for want, size in zip(shape, array.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(f"the output {name} has the shape {list(array.shape)}, expected ({shown}); export it again")
    if not np.isfinite(array[0]).all():
        raise ParityError(f"the output {name} contains NaN or infinity; check the bundle: edgevit verify BUNDLE")
    return np.asarray(array[0])


def _require_as_many(boxes: Array, *others: Array) -> None:
    if any(len(other) != len(boxes) for other in others):
        counts = " and ".join(str(len(each)) for each in (boxes, *others))
        raise UsageError(f"the outputs have {counts} boxes; export the model again")
