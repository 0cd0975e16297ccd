"""`edgevit eval`: its result lines."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.bundles.labeled import DenseEvaluation, lost_points
from edgevit.cli.evaluate import result_lines
from edgevit.dense.bootstrap import Estimate
from edgevit.metrics import drop_points
from tests.helpers.reports import accuracy_report


def test_a_classifier_is_compared_with_the_first() -> None:
    assert result_lines(accuracy_report().evaluations, drop_points) == [
        "torch: top-1 75.00% on 2000 images",
        "shiftvit_cifar10-fp32-openvino: top-1 50.00% on 2000 images, 25.00 points below torch",
        "shiftvit_cifar10-int8-openvino: top-1 25.00% on 2000 images, 50.00 points below torch",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.25, "25.00% on 40 images, 25.00 points below a"), (0.5, "50.00% on 40 images, the same as a"),
     (0.75, "75.00% on 40 images, 25.00 points above a")],
)  # fmt: skip
def test_a_detector_is_compared_with_the_first(value: float, words: str) -> None:
    def detector(name: str, value: float) -> DenseEvaluation:
        figures = {"mAP": Estimate(value, np.array([value, value])), "AP50": Estimate(0.9, np.array([0.9, 0.9]))}
        return DenseEvaluation(name=name, images=40, figures=figures, details={}, chance=0.01)

    evaluations = (detector("a", 0.5), detector("b", value))
    assert result_lines(evaluations, lost_points) == ["a: mAP 50.00% on 40 images", f"b: mAP {words}"]


def test_a_single_model_is_compared_with_none() -> None:
    (line,) = result_lines(accuracy_report().evaluations[:1], drop_points)
    assert line == "torch: top-1 75.00% on 2000 images"


def test_one_image_is_in_the_singular() -> None:
    figures = {"mIoU": Estimate(0.5, np.array([0.5, 0.5]))}
    one = DenseEvaluation(name="a", images=1, figures=figures, details={}, chance=0.1)
    assert result_lines([one], lost_points) == ["a: mIoU 50.00% on 1 image"]
