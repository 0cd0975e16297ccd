"""`export --eval` on detectors and segmentation models: mAP and mIoU of candidates, and what one of them loses."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgevit.errors import ImageError, UsageError
from edgevit.models.description import ModelDescription
from edgevit.models.loading import from_module
from edgevit.pipeline.accuracy import lost, same_predictions, warn_of_labels
from edgevit.pipeline.labeled_dense import DenseEvalDataset
from edgevit.pipeline.references import find_eval_dataset
from edgevit.types import Array, Feeds, OutputForm, TensorSpec
from tests.helpers.dense_bundles import HEIGHT, LETTERBOX, REGIONS, WIDTH

LOGITS = (TensorSpec("logits", "float32", (1, len(REGIONS), HEIGHT // 4, WIDTH // 4)),)


def segmentation_model(form: OutputForm = "logits") -> ModelDescription:
    model = from_module(nn.Conv2d(3, len(REGIONS), 4, 4), example_input=torch.zeros(1, 3, HEIGHT, WIDTH))
    origin = replace(model.origin, task="segmentation", output_form=form)
    return replace(model, origin=origin, preprocessing=LETTERBOX, classes=REGIONS)


def half_red(folder: Path, *, count: int = 3) -> Path:
    """Photos whose left half is red, and their masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = REGIONS.index("red")
    for index in range(count):
        image = Image.new("RGB", (WIDTH, HEIGHT))
        image.paste((255, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
        image.save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


def sees_red(feeds: Feeds) -> dict[str, Array]:
    red = feeds["input"][:, 0, ::4, ::4]
    logits = np.zeros((len(red), len(REGIONS), *red.shape[1:]), np.float32)
    logits[:, 0], logits[:, 1] = 0.5, red
    return {"logits": logits}


def blind(feeds: Feeds) -> dict[str, Array]:
    return {"logits": 0 * sees_red(feeds)["logits"]}


def dataset(folder: Path, *, strict: bool = False) -> DenseEvalDataset:
    found = find_eval_dataset(segmentation_model(), folder, LOGITS, batch=1, strict=strict)
    assert isinstance(found, DenseEvalDataset)
    return found


def test_candidates_are_compared_by_miou(tmp_path: Path) -> None:
    images = dataset(half_red(tmp_path / "data"))
    (right, wrong), _ = images.evaluate({"fp32": sees_red, "int8": blind})
    assert (right.metric, right.accuracy, right.images, right.may_be_guessing) == ("mIoU", 1.0, 3, False)
    assert wrong.accuracy == pytest.approx(0.25)  # half of the background, nothing of red
    drop = lost(right, wrong)
    assert drop.points == pytest.approx(75)
    assert drop.interval.low == drop.interval.high == pytest.approx(75)  # all photos are alike
    assert wrong.may_be_guessing
    assert same_predictions(right, wrong) is None


def test_a_photo_that_cannot_be_read_is_left_out_or_an_error(tmp_path: Path) -> None:
    folder = half_red(tmp_path / "data")
    (folder / "images" / "0.png").write_bytes(b"torn")
    images = dataset(folder)
    (found,), skipped = images.evaluate({"fp32": sees_red})
    assert (found.images, [error.path for error in skipped]) == (2, [folder / "images" / "0.png"])
    with pytest.raises(ImageError, match=r"0\.png"):
        dataset(folder, strict=True).evaluate({"fp32": sees_red})


def test_ignored_pixels_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = half_red(tmp_path / "data")
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 0, 0, 255).astype(np.uint8)).save(path)
    images = dataset(folder)
    for _ in range(2):
        (found,), skipped = images.evaluate({"fp32": sees_red})
    with caplog.at_level(logging.WARNING):
        warn_of_labels(found, skipped, images.count)
    assert caplog.messages == [
        "edgevit: --eval: 50.0% of the pixels of the masks have the value 255 and are ignored",
        "edgevit: --eval: the masks have only the values 0 and 255; if 255 is an object, save it as 1",
    ]


def test_a_subset_is_spread_over_the_photos(tmp_path: Path) -> None:
    assert dataset(half_red(tmp_path / "data", count=5)).subset(2).count == 2


def test_outputs_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--eval needs segmentation outputs; use --outputs logits or classes, not feat"
    ):
        find_eval_dataset(segmentation_model("features"), tmp_path, LOGITS, batch=1, strict=False)
