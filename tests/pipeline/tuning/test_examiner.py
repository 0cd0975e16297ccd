"""The accuracy of the finalists: few labeled images show little, and the notes say so."""

from __future__ import annotations

from typing import Any

import pytest

from edgevit.metrics import Evaluation, drop_points
from edgevit.pipeline.tuning.examiner import Examiner, Verification


def evaluation(*, images: int, correct: int) -> Evaluation:
    """Labels are all 0; the first `correct` images are predicted right."""
    predictions = tuple(int(index >= correct) for index in range(images))
    return Evaluation(name="a", class_count=10, labels=(0,) * images, predictions=predictions, ranks=predictions)


@pytest.mark.parametrize(
    ("images", "original", "max_drop", "expected"),
    [
        (
            3,
            3,
            0.01,
            ["--max-drop 1% holds on 3 images, which are too few to show it: the loss may be up to 39.2 points"],
        ),
        (500, 450, 0.01, []),
        (500, 450, 0.001, ["--max-drop 0.1% holds on 500 images, which are too few to show it"]),
        (500, 450, None, []),
        (3, 0, 0.01, ["accuracy unknown (the original itself may be guessing: top-1 0.0% on 3 images)"]),
    ],
)
def test_images_that_cannot_show_the_accuracy_are_named(
    images: int, original: int, max_drop: float | None, expected: list[str]
) -> None:
    anything: Any = None
    reference = evaluation(images=images, correct=original)
    examiner = Examiner(export=anything, deadline=anything, max_drop=max_drop, _reference=reference)
    winner = Verification(evaluation=reference, drop=drop_points(reference, reference))
    found = examiner.warnings(winner)
    assert len(found) == len(expected)
    assert all(note.startswith(text) for note, text in zip(found, expected, strict=True))
    assert examiner.warnings(Verification()) == []
