"""Agreement of two dense models, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgevit.dense.matching import ClassAgreement, agreement_of_objects, agreement_of_outputs, agreement_of_pixels
from edgevit.dense.nms import Detections


def found(*objects: tuple[Sequence[float], int]) -> Detections:
    boxes = np.array([box for box, _ in objects], float).reshape(-1, 4)
    labels = np.array([label for _, label in objects], int)
    return Detections(boxes=boxes, scores=np.linspace(0.9, 0.1, len(objects)), labels=labels)


def test_objects_of_one_class_and_place_are_in_both() -> None:
    one = found(((0, 0, 100, 100), 0), ((200, 0, 300, 100), 1), ((0, 200, 100, 300), 2))
    two = found(((0, 0, 100, 100.5), 0), ((200, 0, 300, 100), 2), ((25, 200, 125, 300), 2))
    first, second, third = agreement_of_objects([(one, two)])
    assert first == ClassAgreement(label=0, reference=1, engine=1, both=1, iou=first.iou)
    assert first.iou == pytest.approx(100 / 100.5)
    assert second == ClassAgreement(label=1, reference=1, engine=0, both=0, iou=None)
    assert third == ClassAgreement(label=2, reference=1, engine=2, both=0, iou=third.iou)
    assert third.iou == pytest.approx(75 / 125)


def test_an_object_pairs_once() -> None:
    once, twice = found(((0, 0, 100, 100), 0)), found(((0, 0, 100, 100), 0), ((0, 0, 100, 100), 0))
    assert agreement_of_objects([(twice, once)]) == (ClassAgreement(label=0, reference=2, engine=1, both=1, iou=1.0),)


def test_objects_of_all_images_count() -> None:
    one = found(((0, 0, 100, 100), 0))
    assert agreement_of_objects([(one, one), (one, found())]) == (
        ClassAgreement(label=0, reference=2, engine=1, both=1, iou=1.0),
    )
    assert agreement_of_objects([(found(), found())]) == ()


def test_pixels_of_a_class_are_compared_by_place() -> None:
    reference, engine = np.array([[0, 0, 2], [0, 255, 2]]), np.array([[0, 2, 2], [0, 255, 0]])
    assert agreement_of_pixels([(reference, engine)]) == (
        ClassAgreement(label=0, reference=3, engine=3, both=2, iou=0.5),
        ClassAgreement(label=2, reference=2, engine=2, both=1, iou=1 / 3),
        ClassAgreement(label=255, reference=1, engine=1, both=1, iou=1.0),  # a class as any other
    )


def test_the_logits_of_each_photo_count_at_the_size_of_the_input() -> None:
    logits = np.zeros((2, 3, 2, 2), np.float32)
    logits[0, 1] = logits[1, 2] = 1
    assert agreement_of_outputs({"logits": logits}, {"logits": logits[::-1]}, "logits", (4, 4)) == (
        ClassAgreement(label=1, reference=16, engine=16, both=0, iou=0.0),
        ClassAgreement(label=2, reference=16, engine=16, both=0, iou=0.0),
    )
