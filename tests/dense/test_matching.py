"""Objects in common after non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevit.dense.matching import CommonObjects, common_objects
from edgevit.dense.nms import Detections


def found(*objects: tuple[Sequence[float], int]) -> Detections:
    boxes = np.array([box for box, _ in objects], float).reshape(-1, 4)
    labels = np.array([label for _, label in objects], int)
    return Detections(boxes=boxes, scores=np.linspace(0.9, 0.1, len(objects)), labels=labels)


def test_objects_of_one_class_and_place_are_common() -> None:
    one = found(((0, 0, 100, 100), 0), ((200, 0, 300, 100), 1), ((0, 200, 100, 300), 2))
    two = found(((0, 0, 100, 100.5), 0), ((200, 0, 300, 100), 2), ((5, 200, 105, 300), 2))
    assert common_objects(one, two) == CommonObjects(3, 3, 1)
    assert common_objects(one, one) == CommonObjects(3, 3, 3)


def test_an_object_matches_once() -> None:
    twice = found(((0, 0, 100, 100), 0), ((0, 0, 100, 100), 0))
    assert common_objects(twice, found(((0, 0, 100, 100), 0))).common == 1
    assert common_objects(twice, found()) == CommonObjects(2, 0, 0)
