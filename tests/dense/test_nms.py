"""Non-maximum suppression keeps what mmdet's keeps, and what a plain loop over all pairs keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.dense.nms import NmsOptions, iou, nms
from edgevit.types import Array

ORACLES = Path(__file__).parents[1] / "oracles"


def brute_force(boxes: Array, scores: Array, options: NmsOptions) -> list[tuple[int, int]]:
    """Kept pairs of box and class, one pair at a time, with plain floats."""

    def overlap(a: list[float], b: list[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        common = max(0.0, width) * max(0.0, height)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
        return common / union if union > 0 else 0.0

    pairs = [
        (-float(scores[box, label]), box, label)
        for box in range(len(boxes))
        for label in range(scores.shape[1])
        if scores[box, label] > options.min_score
    ]
    rows = boxes.tolist()
    kept: list[tuple[int, int]] = []
    for _, box, label in sorted(pairs)[: options.top_k]:
        rivals = [other for other, own in kept if options.class_agnostic or own == label]
        if len(kept) < options.kept and all(overlap(rows[other], rows[box]) <= options.max_iou for other in rivals):
            kept.append((box, label))
    return kept


def random_problem(seed: int, count: int = 120, classes: int = 3) -> tuple[Array, Array]:
    """Boxes that overlap often, some of no area, and scores with ties."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0, 40, (count, 2))], 1)
    boxes[::17, 2] = boxes[::17, 0]
    return boxes, random.uniform(0, 1, (count, classes)).round(2)


def test_the_recorded_selection_of_mmdet() -> None:
    with np.load(ORACLES / "detector_parts__mmdet.npz") as recorded:
        found = nms(recorded["nms_boxes"], recorded["nms_scores"])
        assert np.array_equal(found.boxes, recorded["nms_dets"][:, :4])
        assert np.array_equal(found.scores, recorded["nms_dets"][:, 4])
        assert np.array_equal(found.labels, recorded["nms_labels"])


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("kept", [7, 10_000])
@pytest.mark.parametrize("top_k", [None, 1, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_boxes_as_by_brute_force(seed: int, top_k: int | None, kept: int, class_agnostic: bool) -> None:
    options = NmsOptions(kept=kept, class_agnostic=class_agnostic, top_k=top_k, max_iou=0.3)
    boxes, scores = random_problem(seed)
    expected = brute_force(boxes, scores, options)
    found = nms(boxes, scores, options)
    assert found.labels.tolist() == [label for _, label in expected]
    assert np.array_equal(found.boxes, boxes[[box for box, _ in expected]])
    assert np.array_equal(found.scores, [scores[pair] for pair in expected])


def test_candidates_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores = random_problem(2)
    whole = nms(boxes, scores)
    monkeypatch.setattr("edgevit.dense.nms._BLOCK", 16)
    assert np.array_equal(nms(boxes, scores).boxes, whole.boxes)


def test_only_a_larger_overlap_suppresses() -> None:
    """Two boxes that share exactly half of their union both stay; a score at the threshold is none."""
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 2]])
    assert iou(boxes[0], boxes[1]) == 0.5
    assert len(nms(boxes, np.array([[0.9], [0.8], [0.05]]))) == 2
    assert len(nms(boxes, np.array([[0.9], [0.8], [0.06]]))) == 2
    assert len(nms(boxes, np.zeros((3, 1)))) == 0


def test_classes_do_not_suppress_one_another() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 2]])
    scores = np.array([[0.9, 0.0], [0.0, 0.8]])
    assert nms(boxes, scores).labels.tolist() == [0, 1]
    assert nms(boxes, scores, NmsOptions(class_agnostic=True)).labels.tolist() == [0]
