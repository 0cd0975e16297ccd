"""`edgevit eval` on detectors and segmentation models whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from edgevit.bundles.bundle import Bundle
from edgevit.images import Preprocessing
from tests.helpers.bundles import damage
from tests.helpers.cli import last_line, status
from tests.helpers.dense_bundles import COLORS, detector, segmenter

RED_BOX = {"image_id": 0, "category_id": 10, "bbox": [0, 0, 9, 9]}
PALETTE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.dense.bootstrap.RESAMPLES", 50)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("dense_eval")
    stretch = Preprocessing(
        input_size=(3, 64, 96), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", resize="stretch"
    )
    return {
        "detector": detector(folder / "detector"),
        "segmenter": segmenter(folder / "segmenter"),
        "stretched": segmenter(folder / "stretched", stretch),
    }


def coco_folder(folder: Path, *, found: int = 4, missed: int = 0, **changes: Any) -> Path:
    """Photos with one object each; `missed` ones are labeled where there is nothing."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for index in range(found + missed):
        color = COLORS[index % 3]
        image = Image.new("RGB", (960, 640))
        image.paste(PALETTE[color], (160, 160, 480, 480))
        name = f"{index:012}.png"
        image.save(folder / "images" / name)
        images.append({"id": index, "file_name": name})
        left, top = (160, 160) if index < found else (600, 0)
        annotations.append(
            {"image_id": index, "category_id": 10 + COLORS.index(color), "bbox": [left, top, 320, 320], "iscrowd": 0}
        )
    categories = [{"id": 10 + index, "name": name.upper()} for index, name in enumerate(COLORS)]
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def mask_folder(folder: Path, *, wrong: int = 0, count: int = 3) -> Path:
    """Photos of half red, half black, and their masks, of which `wrong` call red green."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(count):
        image = Image.new("RGB", (96, 64))
        image.paste(PALETTE["red"], (0, 0, 48, 64))
        image.save(folder / "images" / f"{index}.png")
        mask = np.zeros((64, 96), np.uint8)
        mask[:, :48] = 2 if index < wrong else 1
        mask[0] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert status("eval", *arguments, "--json", "-") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_detector_that_finds_everything(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    report = evaluated(capsys, dense["detector"].path, "--data", coco_folder(tmp_path / "coco"))
    (row,) = report["accuracy"]
    assert row["mAP"]["value"] == pytest.approx(1)
    assert row["mAP"]["interval"] == {"low": pytest.approx(1), "high": pytest.approx(1)}
    assert report["images"] == 4
    assert "found by name" in report["how"]


def test_objects_that_are_missed_lower_every_figure(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    folder = coco_folder(tmp_path / "coco", found=3, missed=3)
    (row,) = evaluated(capsys, dense["detector"].path, "--data", folder)["accuracy"]
    assert 0.2 < row["mAP"]["value"] < 0.6
    assert row["mAP"]["interval"]["low"] < row["mAP"]["value"] < row["mAP"]["interval"]["high"]
    assert status("eval", dense["detector"].path, "--data", folder) == 0
    assert "mAP %" in capsys.readouterr().out


def test_a_photo_that_cannot_be_read_is_left_out(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    folder = coco_folder(tmp_path / "coco")
    (folder / "images" / "000000000000.png").write_bytes(b"no image")
    report = evaluated(capsys, dense["detector"].path, "--data", folder)
    assert report["images"] == 3
    assert "1 of 4 images" in report["notes"][0]
    assert report["accuracy"][0]["mAP"]["value"] == pytest.approx(1)
    assert status("eval", dense["detector"].path, "--data", folder, "--strict") == 2


def test_mean_iou_and_ignored_pixels(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = mask_folder(tmp_path / "right"), mask_folder(tmp_path / "wrong", wrong=1)
    (row,) = evaluated(capsys, dense["segmenter"].path, "--data", right)["accuracy"]
    assert (row["mIoU"]["value"], row["pixel accuracy"]["value"]) == (1, 1)
    (row,) = evaluated(capsys, dense["segmenter"].path, "--data", wrong)["accuracy"]
    assert row["mIoU"]["value"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert row["class_ious"] == [1, pytest.approx(2 / 3), 0, None]


def test_two_bundles_are_compared_on_the_same_draws(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again, folder = segmenter(tmp_path / "again"), mask_folder(tmp_path / "masks", wrong=1)
    assert status("eval", dense["segmenter"].path, again.path, "--data", folder) == 0
    printed = capsys.readouterr().out
    assert "again: mIoU 55.56% on 3 images, the same as segmenter" in printed
    assert "0.00 (0.00 to 0.00)" in printed


def test_random_weights_of_any_bundle_are_noted(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random, folder = segmenter(tmp_path / "random"), mask_folder(tmp_path / "masks")
    damage(random.path, "model.weights", "random (seed 0)")
    notes = evaluated(capsys, dense["segmenter"].path, random.path, "--data", folder)["notes"]
    assert [note for note in notes if "weights" in note] == ["random has random weights: its accuracy means nothing"]


def test_masks_whose_zero_means_no_class(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mask_folder(tmp_path / "masks")
    for path in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8)).save(path)
    (row,) = evaluated(capsys, dense["segmenter"].path, "--data", folder, "--reduce-zero-label")["accuracy"]
    assert row["mIoU"]["value"] == 1


def test_ignored_pixels_are_counted_and_may_be_the_foreground(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mask_folder(tmp_path / "masks")
    command = (dense["segmenter"].path, "--data", folder)
    ignored = "1.6% of the pixels of the masks have the value 255 and are ignored"
    assert evaluated(capsys, *command)["notes"] == [ignored]
    for path in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 1, 255, 0).astype(np.uint8)).save(path)
    notes = evaluated(capsys, *command)["notes"]
    assert notes[0].startswith("49.2% of the pixels")
    assert notes[1] == "the masks have only the values 0 and 255; if 255 is an object, save it as 1"
    for path in (folder / "masks").iterdir():
        Image.new("L", (96, 64)).save(path)
    assert evaluated(capsys, *command)["notes"] == []


def test_a_detector_has_no_masks_whose_zero_could_mean_no_class(
    dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = coco_folder(tmp_path / "coco", found=1)
    assert status("eval", dense["detector"].path, "--data", folder, "--reduce-zero-label", "--quiet") == 2
    assert "--reduce-zero-label is for the masks of segmentation models" in last_line(capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1, "file_name": "../secret.png"}]}, "outside of its folder"),
        ({"images": [{"id": 1, "file_name": "nowhere.png"}]}, "which is not in"),
        ({"images": []}, "lists no images"),
        ({"annotations": [{"image_id": 0, "category_id": 10, "bbox": [0, 0, 1]}]}, "not COCO's format: annotations"),
        ({"annotations": 3}, "not COCO's format"),
        ({"annotations": [], "categories": [{"id": 1, "name": "zebra"}]}, "none named like a class"),
        ({"annotations": []}, "none of the 1 images has a box"),
        ({"annotations": [{**RED_BOX, "iscrowd": 1}]}, "none of the 1 images has a box"),
        ({"annotations": [{**RED_BOX, "image_id": 7}]}, "none of the 1 images has a box"),
        ({"annotations": [{**RED_BOX, "category_id": 7}]}, "boxes of the category id 7, which it does not list"),
        ({"annotations": [{**RED_BOX, "bbox": [0, 0, -1, 1]}]}, "expected x, y, width and height of at least 0"),
        ({"images": 2 * [{"id": 0, "file_name": "000000000000.png"}]}, "has the image id 0 2 times"),
        ({"categories": 2 * [{"id": 10, "name": "red"}]}, "has the category id 10 2 times"),
        ({"categories": [{"id": 10, "name": "red"}, {"id": 11, "name": "Red"}]}, "has the category red 2 times"),
    ],
)
def test_wrong_annotations_are_one_line(
    changes: dict[str, Any], message: str, dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = coco_folder(tmp_path / "coco", found=1, **changes)
    assert status("eval", dense["detector"].path, "--data", folder, "--quiet") == 2
    assert message in last_line(capsys)


def test_boxes_of_images_that_the_file_lacks_are_left_out_and_counted(
    dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    boxes = [{**RED_BOX, "bbox": [160, 160, 320, 320]}, {**RED_BOX, "image_id": 7}]
    found = evaluated(capsys, dense["detector"].path, "--data", coco_folder(tmp_path, found=1, annotations=boxes))
    assert found["accuracy"][0]["mAP"]["value"] == 1
    assert found["how"].startswith("1 boxes of 3 categories") and found["how"].endswith(
        "; 1 boxes of images that it does not list"
    )


def state_size(folder: Path, width: Any, height: Any) -> None:
    content = json.loads((folder / "annotations.json").read_text())
    for image in content["images"]:
        image.update(width=width, height=height)
    (folder / "annotations.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ((480, 320), "has 960x640 pixels, in the annotation file 480x320; give the photos that were labeled"),
        ((640, 960), "in the annotation file 640x960; its boxes may be for the photo before its EXIF rotation"),
    ],
)
def test_boxes_for_photos_of_another_size_are_refused(
    stated: tuple[int, int],
    message: str,
    dense: dict[str, Bundle],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder = coco_folder(tmp_path / "coco", found=1)
    state_size(folder, *stated)
    assert status("eval", dense["detector"].path, "--data", folder, "--quiet") == 2
    line = last_line(capsys)
    assert "000000000000.png" in line and message in line


@pytest.mark.parametrize("stated", [(960, 640), (960.0, 640.0), (0, 0), (None, None)])
def test_the_size_of_a_photo_is_compared_if_the_file_has_it(
    stated: tuple[Any, Any], dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    folder = coco_folder(tmp_path / "coco", found=1)
    state_size(folder, *stated)
    (row,) = evaluated(capsys, dense["detector"].path, "--data", folder)["accuracy"]
    assert row["mAP"]["value"] == pytest.approx(1)


def ignore_all(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        Image.new("L", (96, 64), 255).save(path)


def negative_mask(path: Path) -> None:
    path.unlink()
    Image.new("I", (96, 64), -1).save(path.with_suffix(".tif"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "masks" / "1.png").unlink(), "has no mask"),
        (lambda folder: Image.new("L", (5, 5)).save(folder / "masks" / "1.png"), "5x5 pixels, its image 96x64"),
        (lambda folder: Image.new("L", (96, 64), 9).save(folder / "masks" / "1.png"), "--reduce-zero-label"),
        (lambda folder: negative_mask(folder / "masks" / "1.png"), "1.tif has the value -1; classes count from 0"),
        (lambda folder: Image.new("RGB", (96, 64)).save(folder / "masks" / "1.png"), "of mode RGB"),
        (lambda folder: (folder / "masks").rename(folder / "other"), "needs the folders images and masks"),
        (lambda folder: (folder / "masks" / "1.png").rename(folder / "masks" / "1.jpg"), "save masks as PNG"),
        (lambda folder: Image.new("L", (96, 64)).save(folder / "masks" / "1.bmp"), "are masks of one image"),
        (ignore_all, "no pixel of the 3 masks has a class"),
    ],
)
def test_wrong_masks_are_one_line(
    damage: Callable[[Path], None],
    message: str,
    dense: dict[str, Bundle],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder = mask_folder(tmp_path / "masks")
    damage(folder)
    assert status("eval", dense["segmenter"].path, "--data", folder, "--quiet") == 2
    assert message in last_line(capsys)


def stored(image: Image.Image, path: Path, orientation: int) -> None:
    """Save an upright image turned, with the EXIF orientation that turns it back; 1 leaves it without EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    if orientation == 1:
        image.save(path)
    else:
        image.transpose(turns[orientation]).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("side", [64, 96])
def test_photos_that_exif_turns_have_masks_that_are_turned_or_clearly_upright(
    orientation: int, side: int, dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = mask_folder(tmp_path / "masks", count=1)
    image, mask = folder / "images" / "0.png", folder / "masks" / "0.png"
    photo, classes = (Image.open(path).crop((0, 0, side, 64)) for path in (image, mask))
    command = ("eval", dense["segmenter"].path, "--data", folder, "--quiet")
    stored(photo, image, orientation)
    stored(classes, mask, orientation)
    (row,) = evaluated(capsys, *command[1:])["accuracy"]
    assert row["mIoU"]["value"] == 1
    stored(classes, mask, 1)  # upright
    is_clear = side != 64 and orientation == 6
    assert status(*command) == (0 if is_clear else 2)
    assert is_clear or "EXIF turns 0.png (orientation" in last_line(capsys)
    classes.transpose(Image.Transpose.ROTATE_90).save(mask)  # as the photo is stored
    assert status(*command) == 2
    assert orientation == 3 or "EXIF turns 0.png (orientation 6)" in last_line(capsys)


def test_a_bundle_given_twice_is_one_line(
    dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No dictionary by name may lose one of the two, wherever they stand."""
    folder, own = mask_folder(tmp_path / "masks", count=1), dense["segmenter"].path
    again = segmenter(tmp_path / "again").path
    for paths, name in (((own, own), own), ((own, again, again), again)):
        assert status("eval", *paths, "--data", folder, "--quiet") == 2
        assert f"{name} is given twice; give it once" in last_line(capsys)


def test_bundles_that_cannot_be_compared_are_one_line(
    dense: dict[str, Bundle], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = mask_folder(tmp_path / "masks", count=1)
    for other, message in (("detector", "differ in their task"), ("stretched", "differ in their preprocessing")):
        assert status("eval", dense["segmenter"].path, dense[other].path, "--data", folder, "--quiet") == 2
        assert message in last_line(capsys)
