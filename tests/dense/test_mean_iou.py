"""Mean IoU counts each pixel once, leaves out ignored ones, and its interval covers the figure."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.dense.mean_iou import class_ious, count_pixels, mean_iou_and_accuracy


def test_as_by_sets_of_pixels() -> None:
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 4, (9, 7)), random.choice([0, 1, 2, 255], (9, 7))) for _ in range(5)]
    counts = [count_pixels(found, true, 6) for found, true in pairs]
    found, true = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    ious = []
    for index in range(6):
        one = set(np.flatnonzero((found == index) & (true != 255)).tolist())
        two = set(np.flatnonzero(true == index).tolist())
        ious.append(len(one & two) / len(one | two) if one | two else None)
    assert class_ious(counts) == [each if each is None else pytest.approx(each) for each in ious]
    assert ious[4] is ious[5] is None
    figure, accuracy = mean_iou_and_accuracy(counts)
    assert figure.value == pytest.approx(np.mean([each for each in ious if each is not None]))
    assert figure.interval.low <= figure.value <= figure.interval.high
    assert accuracy.value == pytest.approx((found == true)[true != 255].mean())


def test_a_paired_difference_of_equal_candidates_is_exactly_0() -> None:
    random = np.random.default_rng(0)
    counts = [count_pixels(random.integers(0, 3, (5, 5)), random.integers(0, 3, (5, 5)), 3) for _ in range(4)]
    difference = mean_iou_and_accuracy(counts)[0].minus(mean_iou_and_accuracy(counts)[0])
    assert (difference.value, difference.interval.low, difference.interval.high) == (0, 0, 0)
