"""The trained detector and segmenter: engines find in labeled pictures what PyTorch finds, and that is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.evaluate_dense import evaluate_dense
from edgevit.bundles.source_model import PytorchSource
from edgevit.models.dense.anchors import decode, grid_anchors
from edgevit.models.loading import class_names, from_name
from edgevit.pipeline import run as pipeline
from tests.helpers.shapes import SHAPES, scene, write_shapes
from tests.tools import train_dense

DETECTOR, SEGMENTER = "shiftvit_shapes_retinanet", "shiftvit_shapes_semfpn"


def test_the_classes_are_those_of_the_pictures() -> None:
    assert class_names("shapes") == SHAPES
    assert class_names("shapes_and_background") == ("background", *SHAPES)


def test_the_same_seed_gives_the_same_picture_with_boxes_around_its_shapes() -> None:
    one, two = scene((1, 2), (64, 96)), scene((1, 2), (64, 96))
    assert np.array_equal(one.image, two.image) and np.array_equal(one.mask, two.mask)
    assert one.image.shape == (64, 96, 3)
    (left, top, right, bottom), label = one.boxes[0].astype(int), one.labels[0]
    inside = one.mask[top:bottom, left:right]
    assert (inside == 1 + label).any(0).all() and (inside == 1 + label).any(1).all()  # it touches all four sides


def test_a_box_is_decoded_from_the_deltas_it_is_trained_on() -> None:
    anchors = grid_anchors(8, 8, 8)
    boxes = torch.tensor([[3.0, 5.0, 40.0, 37.0]]).expand(len(anchors), 4)
    assert torch.allclose(decode(train_dense.deltas_to(anchors, boxes)[None], anchors, img_size=(64, 64)), boxes)


def test_a_turned_picture_has_its_boxes_around_the_same_shapes() -> None:
    drawn = train_dense.training_scene(3)
    for seed in range(8):
        turned = train_dense.turned(drawn, np.random.default_rng(seed))
        for (left, top, right, bottom), label in zip(turned.boxes.astype(int), turned.labels, strict=True):
            patch = turned.mask[top:bottom, left:right] == 1 + label
            assert patch.any(0).mean() > 0.9 and patch.any(1).mean() > 0.9


@pytest.mark.parametrize("outputs", ["raw", "nms"])
def test_other_outputs_have_the_trained_weights_too(outputs: str) -> None:
    model = edgevit.create_model(DETECTOR, outputs=outputs)
    assert str(getattr(model.model_info, "weights", "")).startswith("included")


@pytest.mark.parametrize(("name", "least"), [(SEGMENTER, 0.6), pytest.param(DETECTOR, 0.2, marks=pytest.mark.large)])
def test_engines_are_as_accurate_as_pytorch_and_far_above_chance(name: str, least: float, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    data = write_shapes(tmp_path / "data", 10)
    config = pipeline.ExportConfig(formats=("ort", "openvino"), out=tmp_path / "out", latency=False)
    report = pipeline.run(from_name(name), config)
    bundles = [Bundle.open(each.path) for each in report.bundles]
    pytorch, *engines = evaluate_dense(bundles, data=data, pytorch=PytorchSource()).evaluations
    assert pytorch.accuracy > least  # chance: 0.13 of a background alone, and 0
    assert [each.accuracy for each in engines] == pytest.approx([pytorch.accuracy] * 2, abs=1e-3)
