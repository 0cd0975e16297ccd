"""A box drawn in a photo comes back in the photo's pixels, whatever the photo's shape and the way it is resized."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.errors import UsageError
from edgevit.images import Preprocessing, read_image, to_array
from edgevit.types import PAD_SIDES, Array, PadSide, ResizeMode
from tests.helpers.placements import boxes_to_input

WIDE = Preprocessing(input_size=(3, 64, 96), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", resize="fit")
SIZES = [
    (96, 64),
    (64, 96),
    (31, 97),
    (300, 200),
    (200, 301),
    (1, 1),
    (1, 500),
    (500, 1),
    (4001, 2999),
]  # width, height
MODES: list[ResizeMode] = ["fit", "stretch", "shorter_side"]


def found_box(pixels: Array) -> list[float]:
    """The edges of a bright box on black, (H, W), to fractions of a pixel: from its center and its width."""
    edges = []
    for axis in (0, 1):  # x, y
        profile = pixels.sum(axis) / pixels.sum(axis).max()
        center = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
        edges.append((center - profile.sum() / 2, center + profile.sum() / 2))
    return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]


@pytest.mark.parametrize("side", PAD_SIDES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(96, 64), (60, 90), (31, 97), (300, 200), (200, 301)])
def test_a_drawn_box_comes_back_within_half_a_pixel(size: tuple[int, int], mode: ResizeMode, side: PadSide) -> None:
    width, height = size
    box = (width // 4, height // 3, width // 4 + width // 2, height // 3 + height // 2)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    preprocessing = replace(WIDE, resize=mode, pad_side=side)
    placement = preprocessing.place(image)
    back = placement.boxes_to_photo(np.array([found_box(to_array(image, preprocessing)[0])]))
    assert np.abs(back - box).max() <= 0.5
    assert np.abs(boxes_to_input(placement, back)[0] - found_box(to_array(image, preprocessing)[0])).max() < 1e-9


@pytest.mark.parametrize("side", PAD_SIDES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_the_whole_photo_maps_to_the_part_that_is_not_padding(
    size: tuple[int, int], mode: ResizeMode, side: PadSide
) -> None:
    """Also of photos of one pixel, of strips and of large ones."""
    preprocessing = replace(WIDE, resize=mode, pad_side=side, pad=(-7.0, -7.0, -7.0))
    image = Image.new("RGB", size, (255, 255, 255))
    array = to_array(image, preprocessing)
    placement = preprocessing.place(image)
    shown = np.argwhere(array[0] > 0.5)
    (left, top, right, bottom) = boxes_to_input(placement, np.array([[0, 0, *size]]))[0]
    assert shown.min(0).tolist() == [top, left]
    assert (shown.max(0) + 1).tolist() == [bottom, right]
    assert (array != -7).sum() == 3 * len(shown)
    box = np.array([[0.25 * size[0], 0.5 * size[1], 0.75 * size[0], 0.9 * size[1]]])
    assert np.allclose(placement.boxes_to_photo(boxes_to_input(placement, box)), box, rtol=0, atol=1e-9 * max(size))


def test_a_photo_turned_by_exif_is_placed_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    placement = WIDE.place(read_image(tmp_path / "turned.jpg"))
    assert placement.photo == (60, 30)
    assert placement.resized == (64, 32)


def test_padding_is_the_mean_color_and_at_the_bottom_right() -> None:
    """As in mmdet: 0 after normalization. A box in a letterboxed photo that fills the width keeps its place."""
    white = Image.new("RGB", (96, 32), (255, 255, 255))
    array = to_array(white, Preprocessing(input_size=(3, 64, 96), resize="fit"))
    assert (array[:, 32:] == 0).all()
    assert array[:, :32].min() > 2


def test_shorter_side_has_the_size_of_mmdet() -> None:
    """A photo of 640x480 is resized to 1067x800 for a network of 1344x800, one of 1000x300 to 1333x400."""
    preprocessing = Preprocessing(input_size=(3, 800, 1344), resize="shorter_side", edges=(800, 1333))
    assert preprocessing.place(Image.new("RGB", (640, 480))).resized == (800, 1067)
    assert preprocessing.place(Image.new("RGB", (1000, 300))).resized == (400, 1333)
    assert preprocessing.place(Image.new("RGB", (480, 640))).resized == (800, 600)  # 800x1067 would not fit


def test_boxes_beyond_the_photo_are_clipped() -> None:
    placement = WIDE.place(Image.new("RGB", (96, 32)))
    assert placement.boxes_to_photo(np.array([[-5, 10, 200, 60]])).tolist() == [[0, 10, 96, 32]]


@pytest.mark.parametrize("size", SIZES)
def test_pixel_centers_of_the_photo_in_a_map(size: tuple[int, int]) -> None:
    """A quarter-size map has its first center at 1.5 pixels of the input."""
    placement = replace(WIDE, pad_side="center").place(Image.new("RGB", size))
    rows, columns = placement.map_centers((16, 24))
    centers = np.array([[0.5, 0.5, size[0] - 0.5, size[1] - 0.5]])
    left, top, right, bottom = boxes_to_input(placement, centers)[0] / 4 - 0.5
    assert np.allclose([columns[0], rows[0], columns[-1], rows[-1]], [left, top, right, bottom])
    assert (len(rows), len(columns)) == (size[1], size[0])


def test_a_crop_cannot_be_mapped_back() -> None:
    with pytest.raises(UsageError, match="crops images"):
        Preprocessing().place(Image.new("RGB", (9, 9)))
