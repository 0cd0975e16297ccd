"""How many objects two models have in common after non-maximum suppression: for information, not for a verdict.

Ties and thresholds turn differences of the last digit into other lists, so parity is judged before the suppression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgevit.dense.nms import Detections, iou
from edgevit.dense.outputs import BOXES, detections
from edgevit.placement import Placement
from edgevit.types import Array, OutputForm

SAME_IOU = 0.99


@dataclass(frozen=True, slots=True)
class CommonObjects:
    """Objects of the first model, of the second, and those in both: of one class, with an IoU of at least SAME_IOU."""

    first: int
    second: int
    common: int

    def __add__(self, other: CommonObjects) -> CommonObjects:
        return CommonObjects(self.first + other.first, self.second + other.second, self.common + other.common)

    def __str__(self) -> str:
        return f"{self.first} objects in the reference, {self.second} in the engine, {self.common} in both"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def common_objects(first: Detections, second: Detections) -> CommonObjects:
    """Match each object of the first, best first, with the most similar one of its class that is still free."""
    free = np.ones(len(second), np.bool_)
    common = 0
    for box, label in zip(first.boxes, first.labels, strict=True):
        overlaps = np.where(free & (second.labels == label), iou(box, second.boxes), 0.0)
        if len(overlaps) and overlaps.max() >= SAME_IOU:
            free[overlaps.argmax()] = False
            common += 1
    return CommonObjects(len(first), len(second), common)


def common_in_outputs(
    first: Mapping[str, Array], second: Mapping[str, Array], form: OutputForm, input_size: tuple[int, int]
) -> CommonObjects:
    """Sum up the objects of all rows of the outputs of two detectors, found in the pixels of the input."""
    whole = Placement(photo=input_size, resized=input_size, offset=(0, 0), input_size=input_size)
    total = CommonObjects(0, 0, 0)
    for row in range(len(first[BOXES])):
        one, two = (
            detections({name: array[row : row + 1] for name, array in outputs.items()}, form, whole)
            for outputs in (first, second)
        )
        total += common_objects(one, two)
    return total
