"""`edgevit run` finds and draws objects and regions in the photo's own pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import CLASSES_FILE
from edgevit.bundles.pictures import picture_paths
from edgevit.errors import BundleError
from edgevit.images import Preprocessing
from tests.helpers.bundles import write_manifest_json
from tests.helpers.cli import last_line, status
from tests.helpers.dense_bundles import COLORS, LETTERBOX, detector, segmenter, selecting_detector

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("dense")
    return {"detector": detector(folder / "detector"), "segmenter": segmenter(folder / "segmenter")}


def save_photo(
    path: Path, size: tuple[int, int], *parts: tuple[tuple[int, int, int, int], tuple[int, int, int]]
) -> Path:
    image = Image.new("RGB", size)
    for box, color in parts:
        image.paste(color, box)
    image.save(path)
    return path


def answers(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert status("run", *arguments, "--json", "-") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["answers"]
    return found


# The detector's boxes have 32 pixels at multiples of 16 of the input, (64, 96): here in the pixels of each photo.
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((96, 64), (16, 16, 48, 48)),
        ((960, 640), (160, 160, 480, 480)),
        ((960, 320), (160, 0, 480, 320)),  # letterboxed: its height becomes 32 of 64 pixels
        ((24, 16), (4, 4, 12, 12)),  # enlarged
        ((480, 640), (0, 160, 320, 480)),  # portrait: 48x64 of the input
    ],
)
def test_boxes_lie_in_the_photos_own_pixels(
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    dense: dict[str, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo = save_photo(tmp_path / "photo.png", size, (box, BLUE))
    (answer,) = answers(capsys, dense["detector"].path, photo, "--out", tmp_path / "out")
    assert (answer["width"], answer["height"]) == size
    best = answer["objects"][0]
    assert (best["class"], best["name"]) == (2, "blue")
    assert best["score"] > 0.9
    assert np.abs(np.subtract(best["box"], box)).max() < 0.5
    with Image.open(tmp_path / "out" / "photo.boxes.jpg") as picture:
        assert picture.size[0] * size[1] == picture.size[1] * size[0]
        assert max(picture.size) >= 480


def test_a_photo_turned_by_exif_has_its_boxes_upright(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upright = Image.new("RGB", (48, 64))
    upright.paste(RED, (0, 16, 32, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    (answer,) = answers(capsys, dense["detector"].path, tmp_path / "turned.png", "--out", tmp_path)
    assert (answer["width"], answer["height"]) == (48, 64)
    assert np.abs(np.subtract(answer["objects"][0]["box"], (0, 16, 32, 48))).max() < 0.5


def test_padding_on_the_side_that_the_manifest_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A centered letterbox moves the photo by 16 pixels; boxes move back."""
    bundle = detector(tmp_path / "centered", replace(LETTERBOX, pad_side="center"))
    photo = save_photo(tmp_path / "photo.png", (96, 32), ((32, 0, 64, 32), RED))
    (answer,) = answers(capsys, bundle.path, photo, "--out", tmp_path)
    assert answer["objects"][0]["box"] == [32, 0, 64, 32]


def test_regions_lie_in_the_photos_own_pixels(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = (280, 120, 680, 520)  # whole points of the model's map
    photo = save_photo(tmp_path / "photo.jpg", (960, 640), (box, RED))
    before = photo.read_bytes()
    (answer,) = answers(
        capsys, dense["segmenter"].path, photo, "--out", tmp_path, "--coco", str(tmp_path / "results.json")
    )
    assert [each["name"] for each in answer["segments"]] == ["background", "red"]
    assert sum(each["pixels"] for each in answer["segments"]) == 960 * 640
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert answer["segments"][1]["pixels"] == pytest.approx(area, rel=0.01)
    with Image.open(tmp_path / "photo.mask.png") as picture:
        assert picture.height == 640
        assert picture.width > 960  # the legend
        corner, inside = picture.getpixel((5, 5)), picture.getpixel((480, 300))
        assert corner != inside
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each["category_id"] for each in results] == [1, 2]
    assert results[1]["segmentation"]["size"] == [640, 960]
    assert photo.read_bytes() == before


def test_coco_results_have_ids_of_file_names_and_width_and_height(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_photo(tmp_path / "000000397133.png", (96, 64), ((16, 16, 48, 48), RED))
    assert status("run", dense["detector"].path, photo, "--out", tmp_path, "--coco", tmp_path / "found.json") == 0
    assert "red  at 16,16 to 48,48" in capsys.readouterr().out
    best = json.loads((tmp_path / "found.json").read_text())[0]
    assert best == {"image_id": 397133, "category_id": 1, "bbox": [16, 16, 32, 32], "score": pytest.approx(1)}


@pytest.mark.parametrize("more", [(), ("--json", "-")])
def test_coco_results_are_not_mixed_with_what_stdout_has(
    more: tuple[str, ...], dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_photo(tmp_path / "photo.png", (96, 64), ((16, 16, 48, 48), RED))
    capsys.readouterr()
    assert status("run", dense["detector"].path, photo, "--out", tmp_path, "--coco", "-", *more) == 2
    output = capsys.readouterr()
    assert "--coco writes a file" in output.err and "--coco results.json" in output.err
    assert not more or json.loads(output.out)["exit_status"] == 2
    assert list(tmp_path.iterdir()) == [photo]


@pytest.mark.parametrize("names", [("a/000001.png", "b/000001.png"), ("a/x_7.png", "a/7.png"), ("a/x.png", "b/x.png")])
def test_photos_of_one_coco_id_are_refused_before_the_run(
    names: tuple[str, str], dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_photo(tmp_path / name, (96, 64))
    photos = [tmp_path / name for name in names]
    command: list[str | Path] = ["run", dense["detector"].path, *photos, "--out", tmp_path / "out"]
    assert status(*command, "--coco", tmp_path / "found.json") == 2
    assert "have the same id in COCO's format" in last_line(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "found.json").exists()
    assert status(*command) == 0


def test_weak_boxes_are_data_and_not_drawn(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A box that holds a color in a quarter of its pixels scores 0.25."""
    photo = save_photo(tmp_path / "photo.png", (96, 64), ((0, 0, 16, 16), RED))
    (answer,) = answers(capsys, dense["detector"].path, photo, "--out", tmp_path)
    assert [each["score"] for each in answer["objects"]] == [pytest.approx(0.25)]
    assert status("run", dense["detector"].path, photo, "--out", tmp_path) == 0
    assert "red" not in capsys.readouterr().out
    assert status("run", dense["detector"].path, photo, "--out", tmp_path, "--min-score", "0.2") == 0
    assert "25.0%  red" in capsys.readouterr().out


def test_boxes_that_the_graph_selects_suppress_other_classes_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, photo = selecting_detector(tmp_path / "nms"), save_photo(tmp_path / "photo.png", (96, 64))
    for options, expected in (
        ((), ["red", "green", "blue"]),
        (("--max-boxes", "2"), ["red", "green"]),
        (("--class-agnostic",), ["red", "blue"]),
        (("--class-agnostic", "--max-boxes", "1"), ["red"]),
    ):
        (answer,) = answers(capsys, bundle.path, photo, "--out", tmp_path, *options)
        assert [each["name"] for each in answer["objects"]] == expected


def test_limits_beyond_those_of_the_graph_are_notes(
    dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, photo = selecting_detector(tmp_path / "nms"), save_photo(tmp_path / "photo.png", (96, 64))
    for path, options, expected in (
        (bundle.path, (), []),
        (bundle.path, ("--max-boxes", "3", "--min-score", "0.05"), []),
        (bundle.path, ("--max-boxes", "4"), ["the model returns at most 3 boxes, so --max-boxes 4 finds no more"]),
        (bundle.path, ("--max-boxes", "1", "--min-score", "0.01"), ["--min-score 0.01 may find no more"]),
        (dense["detector"].path, ("--max-boxes", "4000", "--min-score", "0.01"), []),
    ):
        capsys.readouterr()
        assert status("run", path, photo, "--out", tmp_path, *options, "--json", "-") == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert len(notes) == len(expected) and all(map(str.__contains__, notes, expected))


@pytest.mark.parametrize(("kind", "suffix"), [("detector", ".boxes.jpg"), ("segmenter", ".mask.png")])
def test_pictures_of_an_earlier_run_are_no_photos(
    kind: str, suffix: str, dense: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_photo(tmp_path / "photo.png", (96, 64), ((16, 16, 48, 48), RED))
    for _ in range(2):
        found = answers(capsys, dense[kind].path, tmp_path, "--out", tmp_path)
        assert [each["image"] for each in found] == [str(photo)]
    picture = tmp_path / f"photo{suffix}"
    assert sorted(tmp_path.iterdir()) == sorted([photo, picture])
    assert len(answers(capsys, dense[kind].path, picture, "--out", tmp_path / "named")) == 1
    photo.unlink()
    assert status("run", dense[kind].path, tmp_path) == 2
    assert f"no photo in {tmp_path}, only pictures" in last_line(capsys)


def test_pictures_never_take_the_name_of_a_photo(tmp_path: Path) -> None:
    names = ["a.png", "a.jpg", "sub/a.png", "a.boxes.jpg", "b.png"]
    photos = [tmp_path / name for name in names]
    found = picture_paths(photos, tmp_path, ".boxes.jpg")
    assert [path.name for path in found.values()] == [
        "a.png.boxes.jpg",
        "a.jpg.boxes.jpg",
        "a-2.boxes.jpg",
        "a.boxes.boxes.jpg",
        "b.boxes.jpg",
    ]


@pytest.mark.parametrize(
    ("option", "value"), [("--min-score", "2"), ("--max-boxes", "0"), ("--coco", "/nowhere/x.json")]
)
def test_wrong_options_are_one_line(
    option: str, value: str, dense: dict[str, Bundle], one_line: Callable[[], str], tmp_path: Path
) -> None:
    photo = save_photo(tmp_path / "photo.png", (96, 64))
    assert status("run", dense["detector"].path, photo, "--out", tmp_path, option, value) == 2
    assert option in one_line()


@pytest.mark.parametrize(
    ("kind", "option", "users"),
    [
        ("detector", ["--top", "3"], "classifiers"),
        ("segmenter", ["--top", "3"], "classifiers"),
        ("segmenter", ["--min-score", "0.5"], "detectors;"),
        ("segmenter", ["--max-boxes", "5"], "detectors;"),
        ("segmenter", ["--class-agnostic"], "detectors;"),
    ],
)
def test_options_that_a_model_has_no_use_for_are_rejected(
    kind: str, option: list[str], users: str, dense: dict[str, Bundle], one_line: Callable[[], str], tmp_path: Path
) -> None:
    photo = save_photo(tmp_path / "photo.png", (96, 64))
    assert status("run", dense[kind].path, photo, "--out", tmp_path, *option) == 2
    assert f"{option[0]} is for {users}" in one_line()


def test_outputs_that_are_no_boxes_are_one_line(one_line: Callable[[], str], tmp_path: Path) -> None:
    """The manifest says what a model outputs; another model behind it is refused, and so is one that crops."""
    photo = save_photo(tmp_path / "photo.png", (96, 64))
    bundle = segmenter(tmp_path / "segmenter")
    for change, message in (
        ({"task": "detection", "output_form": "boxes"}, "has no output boxes"),
        ({"output_form": "classes"}, "has the shape"),
        ({"output_form": "raw"}, "has no masks"),
        ({"preprocessing": Preprocessing(input_size=(3, 64, 96))}, "crops its photos"),
    ):
        record = replace(bundle.manifest.model, **change)
        write_manifest_json(bundle.path, replace(bundle.manifest, model=record).to_json())
        assert status("run", bundle.path, photo, "--out", tmp_path) == 2
        assert message in one_line()


def test_the_number_of_names_is_that_of_the_scores(tmp_path: Path) -> None:
    bundle = detector(tmp_path / "detector")
    assert bundle.classes == COLORS
    (bundle.path / CLASSES_FILE).write_text("red\ngreen\n")
    with pytest.raises(BundleError, match="2 names for 3 classes"):
        _ = bundle.classes


@pytest.mark.parametrize("name", ["\x1b[2J", "\x07", "\u202eright to left"])
def test_class_names_of_a_bundle_do_not_steer_the_terminal(
    name: str, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    bundle = detector(tmp_path / "detector")
    photo = save_photo(tmp_path / "photo.png", (96, 64), ((16, 16, 48, 48), RED))
    (bundle.path / CLASSES_FILE).write_text(f"red\ngreen\n{name}\n")
    store.write_manifest(bundle.path, bundle.manifest)
    assert status("run", bundle.path, photo, "--out", tmp_path) == 2
    assert "has control characters in its class names" in one_line()


def test_class_names_in_any_script_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = detector(tmp_path / "detector")
    photo = save_photo(tmp_path / "photo.png", (96, 64), ((16, 16, 48, 48), RED))
    (bundle.path / CLASSES_FILE).write_text("\u0645\u06cc\u200c\u062e\ngreen\tn01\nblau\n", "utf-8")
    store.write_manifest(bundle.path, bundle.manifest)
    (answer,) = answers(capsys, bundle.path, photo, "--out", tmp_path)
    assert answer["objects"][0]["name"] == "\u0645\u06cc\u200c\u062e"
    assert status("run", bundle.path, photo, "--out", tmp_path) == 0
