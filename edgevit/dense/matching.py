"""Agreement of two dense models, class by class: objects after non-maximum suppression, or pixels of class maps.

It informs and decides nothing: ties and thresholds turn differences of the last digit into other lists, so parity is
judged before the suppression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgevit.dense.nms import Detections, iou
from edgevit.dense.outputs import detections, segmentation
from edgevit.placement import Placement
from edgevit.types import Array, OutputForm

PAIR_IOU = 0.5  # of objects that are taken for one
SAME_IOU = 0.99  # of objects that differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAgreement:
    """Objects or pixels of one class in the reference, in the engine, and in both.

    Each object, best first, is paired with the most similar one of its class that is still free, from an IoU of
    PAIR_IOU; those from SAME_IOU are in both, and `iou` is the mean of all pairs. Of pixels it is those in both over
    those in either. None: there is no pair, or no pixel.
    """

    label: int
    reference: int
    engine: int
    both: int
    iou: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement_of_outputs(
    reference: Mapping[str, Array], engine: Mapping[str, Array], form: OutputForm, input_size: tuple[int, int]
) -> tuple[ClassAgreement, ...]:
    """Compare all rows of the outputs of two models of one form, in the pixels of the input; by label."""
    whole = Placement(photo=input_size, resized=input_size, offset=(0, 0), input_size=input_size)
    rows = range(len(next(iter(reference.values()))))
    pairs = [tuple(_row(outputs, row) for outputs in (reference, engine)) for row in rows]
    if form in ("boxes", "nms"):
        return agreement_of_objects([tuple(detections(each, form, whole) for each in pair) for pair in pairs])
    return agreement_of_pixels([tuple(segmentation(each, form, whole) for each in pair) for pair in pairs])


def _row(outputs: Mapping[str, Array], row: int) -> dict[str, Array]:
    return {name: array[row : row + 1] for name, array in outputs.items()}


def agreement_of_objects(images: list[tuple[Detections, ...]]) -> tuple[ClassAgreement, ...]:
    """Compare the objects of a reference and of an engine in the same images, class by class."""
    labels = np.unique(np.concatenate([each.labels for pair in images for each in pair]))
    return tuple(_agreement_of_class(int(label), images) for label in labels)


def _agreement_of_class(label: int, images: list[tuple[Detections, ...]]) -> ClassAgreement:
    boxes = [tuple(each.boxes[each.labels == label] for each in pair) for pair in images]
    overlaps = np.concatenate([_paired_ious(reference, engine) for reference, engine in boxes])
    return ClassAgreement(
        label=label,
        reference=sum(len(reference) for reference, _ in boxes),
        engine=sum(len(engine) for _, engine in boxes),
        both=int((overlaps >= SAME_IOU).sum()),
        iou=float(overlaps.mean()) if len(overlaps) else None,
    )


def _paired_ious(first: Array, second: Array) -> Array:
    """Return the IoU of each pair of boxes, (n, 4) and (m, 4) of one class, the best of the first paired first."""
    free = np.ones(len(second), np.bool_)
    found: list[float] = []
    for box in first:
        overlaps = np.where(free, iou(box, second), 0.0)
        if len(overlaps) and overlaps.max() >= PAIR_IOU:
            free[overlaps.argmax()] = False
            found.append(float(overlaps.max()))
    return np.array(found)


def agreement_of_pixels(images: list[tuple[Array, ...]]) -> tuple[ClassAgreement, ...]:
    """Compare class maps (H, W) of a reference and of an engine of the same images, class by class."""
    reference, engine = (np.concatenate([maps[index].ravel() for maps in images]) for index in range(2))
    size = 1 + max(int(reference.max()), int(engine.max()))
    in_reference, in_engine, in_both = (
        np.bincount(pixels, minlength=size).tolist() for pixels in (reference, engine, reference[reference == engine])
    )
    return tuple(
        ClassAgreement(label=label, reference=one, engine=two, both=both, iou=both / (one + two - both))
        for label, (one, two, both) in enumerate(zip(in_reference, in_engine, in_both, strict=True))
        if one or two
    )
