"""Outputs of dense models are checked before they are read: names, shapes, finite values, classes."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.dense.nms import NmsOptions
from edgevit.dense.outputs import class_count, detections, segmentation
from edgevit.errors import ParityError, UsageError
from edgevit.placement import place
from edgevit.types import Array, OutputForm, TensorSpec

PLACEMENT = place((20, 40), (10, 20), (10, 20))  # a photo of twice the input's size
BOXES = np.array([[[0, 0, 4, 4], [5, 5, 9, 9], [0, 0, 4, 4]]], np.float32)


@pytest.mark.parametrize("value", [-1, 1 << 16, 2**40, 0.5])
def test_values_that_are_no_classes_are_refused(value: float) -> None:
    """A picture's palette has an entry for each class up to the last: 2**40 would need terabytes."""
    with pytest.raises(UsageError, match="values outside the classes 0 to 65535"):
        segmentation({"classes": np.full((1, 10, 20), value)}, "classes", PLACEMENT)


def test_classes_of_any_integer_type_are_read() -> None:
    classes = np.arange(200).reshape(1, 10, 20)
    for dtype in (np.uint8, np.int64, np.int32):
        found = segmentation({"classes": classes.astype(dtype)}, "classes", PLACEMENT)
        assert np.array_equal(found[::2, ::2], classes[0])


def test_the_selection_of_a_graph_ends_with_its_padding() -> None:
    outputs: dict[str, Array] = {
        "num": np.array([[2]]),
        "boxes": BOXES,
        "scores": np.array([[0.6, 0.9, -1]], np.float32),
        "labels": np.array([[3, 5, -1]]),
    }
    found = detections(outputs, "nms", PLACEMENT)
    assert found.labels.tolist() == [5, 3]  # best first
    assert found.boxes.tolist() == [[10, 10, 18, 18], [0, 0, 8, 8]]
    assert len(detections(outputs, "nms", PLACEMENT, NmsOptions(min_score=0.7))) == 1


@pytest.mark.parametrize(
    ("outputs", "form", "error"),
    [
        ({"boxes": BOXES}, "boxes", "no output scores"),
        ({"boxes": BOXES, "scores": np.zeros((1, 2, 7))}, "boxes", "3 and 2 boxes"),
        ({"boxes": BOXES[..., :3], "scores": np.zeros((1, 3, 7))}, "boxes", "has the shape"),
        ({"boxes": BOXES, "scores": np.zeros((1, 3, 0))}, "boxes", "has the shape"),
        ({"c2": BOXES}, "raw", "has no boxes"),
    ],
)
def test_other_outputs_are_refused(outputs: dict[str, Array], form: OutputForm, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        detections(outputs, form, PLACEMENT)


def test_nan_is_no_score() -> None:
    with pytest.raises(ParityError, match="scores contains NaN"):
        detections({"boxes": BOXES, "scores": np.full((1, 3, 2), np.nan)}, "boxes", PLACEMENT)


def test_the_number_of_classes() -> None:
    boxes, scores = TensorSpec("boxes", "float32", (1, 9, 4)), TensorSpec("scores", "float32", (1, 9, 80))
    assert class_count([boxes, scores], "boxes") == 80
    assert class_count([TensorSpec("logits", "float32", ("batch", 19, 8, 8))], "logits") == 19
    assert class_count([TensorSpec("logits", "float32", ("batch", 1000))], "logits") == 1000
    pooled = TensorSpec("pooled", "float32", ("batch", 64))
    assert class_count([pooled, TensorSpec("logits", "float32", ("batch", 10))], "logits") == 10
    assert class_count([pooled, TensorSpec("logits", "float32", ("batch", 19, 8, 8))], "logits") == 19
    assert class_count([TensorSpec("classes", "uint8", (1, 8, 8))], "classes") is None
    assert class_count([], "logits") is None
