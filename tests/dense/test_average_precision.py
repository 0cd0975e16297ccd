"""Average precision equals that of pycocotools, and its interval that of images drawn again by copying them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgevit.dense import average_precision
from edgevit.dense.average_precision import match, mean_average_precisions
from edgevit.dense.bootstrap import Estimate
from edgevit.errors import MissingError
from edgevit.types import Array

coco = pytest.importorskip("pycocotools.coco")
IMAGES, CATEGORIES = 12, 3


def random_dataset(seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects, some of them crowds, and results near them, wrong, or doubled."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(IMAGES):
        for _ in range(random.integers(0, 6)):
            box = [*random.uniform(0, 200, 2), *random.uniform(10, 80, 2)]
            category, crowd = int(random.integers(1, CATEGORIES + 1)), int(random.uniform() < 0.15)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                }
            )
            for _ in range(random.integers(0, 3)):
                near = (np.array(box) * random.uniform(0.85, 1.15, 4)).tolist()
                found = category if random.uniform() < 0.8 else 1
                results.append(
                    {"image_id": image, "category_id": found, "bbox": near, "score": round(random.uniform(), 2)}
                )
    dataset = {
        "images": [{"id": image} for image in range(IMAGES)],
        "categories": [{"id": category} for category in range(1, CATEGORIES + 2)],  # the last has no object
        "annotations": annotations,
    }
    return dataset, results


def stats(dataset: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """AP, AP50 and AP75 as pycocotools sums them up."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {**dataset, "info": {}}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:3]]


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_pycocotools(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.dense.bootstrap.RESAMPLES", 2)
    dataset, results = random_dataset(seed)
    found = [each.value for each in mean_average_precisions(match(dataset, results)).values()]
    assert np.allclose(found, stats(dataset, results), rtol=0, atol=1e-12)
    assert 0 < found[0] < found[1] < 1


def test_an_image_drawn_twice_counts_as_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, results = random_dataset()
    weights = np.array([2, 0, 1, 1, 3, 0, 1, 1, 1, 0, 1, 1])
    copies = [(image, 100 * copy + image) for image in range(IMAGES) for copy in range(weights[image])]
    copied = {
        **dataset,
        "images": [{"id": new} for _, new in copies],
        "annotations": [
            {**each, "image_id": new}
            for old, new in copies
            for each in dataset["annotations"]
            if each["image_id"] == old
        ],
    }
    for number, each in enumerate(copied["annotations"], 1):
        each["id"] = number
    copied_results = [{**each, "image_id": new} for old, new in copies for each in results if each["image_id"] == old]

    def drawn(figures: Callable[[Array], Array], _: int) -> list[Estimate]:
        return [Estimate(value, np.zeros(1)) for value in figures(weights)]

    monkeypatch.setattr(average_precision, "estimates", drawn)
    found = mean_average_precisions(match(dataset, results))
    assert found["mAP"].value == pytest.approx(
        stats(copied, copied_results)[0], abs=0.01
    )  # equal scores change their order


def test_every_resample_averages_over_the_same_classes() -> None:
    """A class of one image, which is never found, is missing in a third of the resamples; the other always is."""
    images = 12
    boxes = [{"image_id": image, "category_id": 1, "bbox": [10, 10, 50, 50]} for image in range(images)]
    rare = {"image_id": 0, "category_id": 2, "bbox": [100, 100, 50, 50]}
    dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {**each, "id": number, "area": 2500, "iscrowd": 0} for number, each in enumerate([*boxes, rare], 1)
        ],
    }
    found = mean_average_precisions(match(dataset, [{**each, "score": 0.9} for each in boxes]))["mAP"]
    assert found.value == pytest.approx(0.5)
    assert found.resampled == pytest.approx(0.5)


def test_nothing_found_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.dense.bootstrap.RESAMPLES", 2)
    dataset, _ = random_dataset()
    assert mean_average_precisions(match(dataset, []))["mAP"].value == 0


def test_without_pycocotools_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MissingError, match=r"pip install 'edgevit\[coco\]'"):
        match(*random_dataset())
