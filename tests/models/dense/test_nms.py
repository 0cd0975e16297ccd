"""The unrolled suppression selects what the greedy algorithm selects."""

from __future__ import annotations

import dataclasses

import torch

from edgevit.models.dense.nms import IN_GRAPH, select
from tests.oracles import load_parts

PARTS = load_parts()


def test_it_selects_what_mmdet_selects() -> None:
    found = select(PARTS["nms_boxes"][None], PARTS["nms_scores"][None], IN_GRAPH)
    detections = torch.cat((found["boxes"][0], found["scores"][0, :, None]), dim=1)
    assert found["num"].tolist() == [[100]]
    torch.testing.assert_close(detections, PARTS["nms_dets"])
    assert found["labels"][0].tolist() == PARTS["nms_labels"].int().tolist()


def test_each_image_of_a_batch_has_its_own_detections() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]]).repeat(2, 1, 1)
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.7, 0.0]], [[0.2, 0.0], [0.3, 0.0], [0.0, 0.01]]])
    options = dataclasses.replace(IN_GRAPH, kept=3)
    found = select(boxes, scores, options)
    assert found["num"].tolist() == [[2], [1]]
    assert found["labels"].tolist() == [[0, 0, -1], [0, -1, -1]]
    torch.testing.assert_close(found["scores"], torch.tensor([[0.9, 0.7, -1], [0.3, -1, -1]]))
    assert found["boxes"][0, 1].tolist() == [20, 20, 30, 30]
    assert found["boxes"][0, 2].tolist() == [-1, -1, -1, -1]


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.9, 0.0], [0.0, 0.8]]])
    assert select(boxes, scores, IN_GRAPH)["num"].tolist() == [[2]]


def test_boxes_of_different_classes_suppress_each_other_if_that_is_asked_for() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.9, 0.0], [0.0, 0.8]]])
    assert select(boxes, scores, dataclasses.replace(IN_GRAPH, class_agnostic=True))["num"].tolist() == [[1]]
