"""Each pixel of a photo gets the class that is best after the logits are resized to the photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from edgevit.dense import masks
from edgevit.dense.masks import class_map, nearest_classes, run_lengths
from edgevit.images import Preprocessing
from edgevit.placement import place
from tests.helpers.graphs import noise
from tests.helpers.placements import boxes_to_input

INPUT = Preprocessing(input_size=(3, 64, 96), resize="fit")


@pytest.mark.parametrize("classes", [2, 19, 300])
@pytest.mark.parametrize("size", [(64, 96), (130, 200), (40, 50)])
def test_a_stretched_photo_as_by_pytorch(size: tuple[int, int], classes: int) -> None:
    logits = noise(classes, 16, 24)
    resized = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
    found = class_map(logits, place(size, (64, 96), (64, 96)))
    best = np.take_along_axis(resized, found[None].astype(np.int64), 0)[0]
    assert np.abs(best - resized.max(0)).max() < 1e-5  # two equally good classes may change places
    assert (found == resized.argmax(0)).mean() > 0.999
    assert found.dtype == (np.uint8 if classes <= 256 else np.uint16)


@pytest.mark.parametrize("side", ["bottom_right", "center"])
@pytest.mark.parametrize("size", [(200, 90), (90, 200), (1, 1), (1, 400), (400, 1), (33, 47)])
def test_a_letterboxed_photo_as_by_resizing_cropping_and_resizing(size: tuple[int, int], side: str) -> None:
    """The edge of a smooth shape lies at the same pixel of the photo, whatever the padding."""
    preprocessing = Preprocessing(input_size=(3, 64, 96), resize="fit", pad_side=side)  # type: ignore[arg-type]
    placement = preprocessing.place(Image.new("RGB", size))
    rows, columns = np.mgrid[0:16, 0:24] * 4 + 2.0  # centers in the input
    box = boxes_to_input(placement, np.array([[0, 0, *size]]))[0]
    middle = (box[0] + box[2]) / 2
    found = class_map(np.stack([0 * columns, columns - middle]), placement)
    expected = np.arange(size[0]) + 0.5 > size[0] / 2
    inside = np.abs(np.arange(size[0]) + 0.5 - size[0] / 2) > 1e-6
    assert (found == expected)[:, inside].all()
    assert rows.shape == (16, 24)


def test_resizing_before_choosing_finds_classes_that_no_point_of_the_map_has() -> None:
    """Class 1 is second at both points and best between them: argmax before resizing would lose it."""
    logits = np.array([[[3.0, -3.0]], [[2.0, 2.0]], [[-3.0, 3.0]]])
    found = class_map(logits, place((1, 16), (1, 2), (1, 2)))
    assert set(found[0].tolist()) == {0, 1, 2}
    assert set(nearest_classes(logits.argmax(0), place((1, 16), (1, 2), (1, 2)))[0].tolist()) == {0, 2}


def test_strips_and_left_out_classes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, placement = noise(30, 16, 24), INPUT.place(Image.new("RGB", (301, 203)))
    whole = class_map(logits, placement)
    monkeypatch.setattr(masks, "_MAX_VALUES", 1)
    monkeypatch.setattr(masks, "_possible_winners", lambda corners: np.arange(len(corners)))
    assert np.array_equal(class_map(logits, placement), whole)


def test_classes_of_the_nearest_pixel() -> None:
    classes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (
        nearest_classes(classes, place((4, 6), (2, 3), (2, 3))).tolist()
        == np.repeat(np.repeat(classes, 2, 0), 2, 1).tolist()
    )


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 400)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_are_those_of_coco(shape: tuple[int, int], share: float) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).uniform(size=shape) < share
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert run_lengths(mask) == {"size": expected["size"], "counts": expected["counts"].decode()}
