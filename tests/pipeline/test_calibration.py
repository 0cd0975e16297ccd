"""Calibration inputs: photos and arrays, and which of them are rejected."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import edgevit
from edgevit.errors import ImageError, PrecisionError, UsageError
from edgevit.images import read_image
from edgevit.models.loading import from_module, from_name
from edgevit.pipeline.calibration import calibration_inputs
from tests.helpers.cli import last_line
from tests.helpers.int8 import (
    INCLUDED_PHOTOS,
    export,
    manifest,
)


def bad_folder(case: str, views: Path, folder: Path) -> Path:
    if case == "missing":
        return folder
    folder.mkdir()
    if case == "broken":
        (folder / "torn.png").write_bytes(next(views.iterdir()).read_bytes()[:200])
    elif case == "no image":
        (folder / "notes.txt").write_text("no image")
    elif case != "empty":
        colours = {"black": [(0, 0, 0)], "of one colour each": [(0, 0, 0), (255, 255, 255), (200, 30, 40)]}[case]
        for index in range(6):
            Image.new("RGB", (40, 40), colours[index % len(colours)]).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no folder of images at"),
        ("empty", "no image in"),
        ("no image", "no image in"),
        ("broken", "torn.png"),
        ("black", "6 of 6 photos in"),
        ("of one colour each", "show a single color"),
    ],
)
def test_an_unusable_folder_is_rejected(case: str, message: str, small: Path, views: Path, tmp_path: Path) -> None:
    calib = bad_folder(case, views, tmp_path / "calib")
    with pytest.raises(UsageError, match=message) as caught:
        calibration_inputs(from_name(f"{small}:plain", img_size=32), calib)
    assert str(calib) in str(caught.value)
    assert caught.value.exit_status == 2


def with_a_torn_photo(views: Path, folder: Path) -> Path:
    """Copy three photos and the beginning of one."""
    folder.mkdir()
    for path in sorted(views.iterdir())[:3]:
        shutil.copy(path, folder)
    (folder / "torn.png").write_bytes(next(views.iterdir()).read_bytes()[:200])
    return folder


def test_a_photo_that_cannot_be_read_is_left_out_and_named(
    small: Path, views: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, calib = from_name(f"{small}:plain", img_size=32), with_a_torn_photo(views, tmp_path / "calib")
    with caplog.at_level(logging.WARNING):
        assert calibration_inputs(model, calib)["x"].shape == (3, 3, 32, 32)
    assert "--calib: 1 of 4 images could not be read" in caplog.text
    assert str(calib / "torn.png") in caplog.text
    with pytest.raises(ImageError, match=r"torn\.png"):
        calibration_inputs(model, calib, strict=True)


@pytest.mark.parametrize("case", ["missing", "black"])
def test_an_unusable_folder_leaves_no_files(
    case: str, small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(small, "plain", tmp_path / "out", "--calib", bad_folder(case, views, tmp_path / "calib")) == 2
    assert str(tmp_path / "calib") in last_line(capsys)
    assert list((tmp_path / "out").iterdir()) == []


MODES = {"grey": "L", "bits": "1", "palette": "P", "transparent": "RGBA", "print": "CMYK"}


def save_in_every_mode(source: Path, folder: Path) -> int:
    """Save one photo in every mode that image files have; return the number of files."""
    folder.mkdir()
    photo = read_image(source).resize((64, 64))
    for name, mode in MODES.items():
        photo.convert(mode).save(folder / f"{name}.{'png' if mode in ('L', '1', 'P', 'RGBA') else 'tiff'}")
    deep = np.asarray(photo.convert("L"), np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    photo.convert("CMYK").save(folder / "print.jpg")
    return len(list(folder.iterdir()))


def test_every_image_mode_calibrates(small: Path, views: Path, tmp_path: Path) -> None:
    count = save_in_every_mode(sorted(views.iterdir())[0], tmp_path / "calib")
    for path in views.iterdir():  # enough photos for int8 to pass
        shutil.copy(path, tmp_path / "calib")
    assert export(small, "plain", tmp_path / "out", "--calib", tmp_path / "calib") == 0
    precision_plan = manifest(tmp_path / "out", "small_plain-int8-ort")["typing"]
    assert precision_plan["photos"] == count + len(list(views.iterdir())) == 7 + 12


@pytest.mark.parametrize(
    "name",
    ["grey.png", "palette.png", "transparent.png", "print.tiff", "print.jpg", "deep.png"],
)
def test_every_image_mode_is_read_correctly(name: str, views: Path, tmp_path: Path) -> None:
    """Within the loss of the file format."""
    source = sorted(views.iterdir())[0]
    save_in_every_mode(source, tmp_path / "photos")
    found = np.asarray(read_image(tmp_path / "photos" / name).convert("L"), float)
    wanted = np.asarray(read_image(source).resize((64, 64)).convert("L"), float)
    assert np.abs(found - wanted).mean() < 16


class Signals(nn.Module):
    """A model without an image input.

    It has no two linear layers in sequence: OpenVINO fuses those into one layer on processors with AVX-512 only.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolutions = (nn.Conv1d(4, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, padding=1), nn.ReLU())
        self.layers = nn.Sequential(nn.Unflatten(1, (4, 6)), *convolutions, nn.Conv1d(32, 5, 6), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


ROWS = np.random.default_rng(1).standard_normal((64, 24)).astype(np.float32)


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_arrays_calibrate_a_model_without_images(fmt: str, tmp_path: Path) -> None:
    module = Signals()
    bundle = edgevit.export(module, fmt=fmt, precision="int8", calib={"x": ROWS}, example_input=torch.zeros(1, 24),
                            batch=4, out=tmp_path)  # fmt: skip
    precision_plan = bundle.manifest.to_json()["typing"]
    assert precision_plan["photos"] == 16  # batches of four
    assert precision_plan["share"] > 0.9
    assert bundle.manifest.to_json()["precision"]["multiply_add_shares"]["int8"] >= 0.95 * precision_plan["share"]
    with edgevit.load(bundle) as engine, torch.inference_mode():
        found = next(iter(engine.run({"x": ROWS[:4]}).values()))
        wanted = module(torch.from_numpy(ROWS[:4])).numpy()
    assert np.abs(found - wanted).max() < 0.1 * wanted.std()


@pytest.mark.parametrize(
    ("calib", "message"),
    [
        ({"images": ROWS}, r"calib has the inputs \['images'\]; the model takes \['x'\]"),
        ({"x": ROWS, "z": ROWS}, "calib has the inputs"),
        ({}, "calib has the inputs"),
        ({"x": ROWS[:0]}, "at least one"),
        ({"x": ROWS.tolist()}, r"calib has a list for x; pass a NumPy array, float32 of shape \['rows', 24\]"),
        ({"x": ROWS[:, :23]}, r"calib has float32 of shape \[64, 23\] for x; expected float32 of shape"),
        ({"x": ROWS[0]}, r"calib has float32 of shape \[24\] for x"),
        ({"x": ROWS.astype(np.float64)}, r"calib has float64 of shape \[64, 24\] for x"),
        ({"x": np.where(ROWS > 2, np.nan, ROWS)}, "calib has NaN or infinity for x"),
        (INCLUDED_PHOTOS, "--calib needs a model with one image input"),
    ],
)
def test_arrays_that_do_not_fit_are_rejected(calib: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibration_inputs(from_module(Signals(), example_input=torch.zeros(1, 24)), calib)


def test_python_raises_the_same_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calib DIR"):
        edgevit.export(Signals(), fmt="ort", precision="int8", example_input=torch.zeros(1, 24), out=tmp_path)
    with pytest.raises(PrecisionError, match="int8 would not speed up any layer"):
        edgevit.export(
            nn.ReLU(),
            fmt="ort",
            precision="int8",
            calib={"input": ROWS},
            example_input=torch.zeros(1, 24),
            out=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []
