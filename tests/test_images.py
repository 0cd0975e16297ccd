"""Image preprocessing: every mode becomes RGB and upright, cropped and normalized as in the authors' evaluation."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.errors import ImageError, UsageError
from edgevit.images import (
    Preprocessing,
    find_images,
    read_batch,
    read_image,
    read_readable,
    sample_images,
    skipped_notes,
    to_array,
)
from edgevit.types import CROP_MODES, CropMode

PLAIN = Preprocessing(input_size=(3, 8, 8), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def test_normalizes_by_channel() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    array = to_array(image, Preprocessing(input_size=(3, 8, 8), crop_pct=1.0))
    expected = (np.array([1, 0, 0.2]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert array.dtype == np.float32
    assert np.allclose(array, expected[:, None, None], atol=1e-6)


def test_resizes_the_shorter_side_and_crops_the_center() -> None:
    """Of a 16x8 image whose left and right quarters are black, only the white center is left."""
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (4, 0, 12, 8))
    assert to_array(image, PLAIN).min() == 1


def test_squash_keeps_the_whole_photo_and_not_its_aspect_ratio() -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (8, 0, 16, 8))
    array = to_array(image, replace(PLAIN, crop_mode="squash", interpolation="nearest"))
    assert array[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_border_keeps_the_whole_photo_between_borders_of_the_mean_color() -> None:
    white = Image.new("RGB", (16, 8), (255, 255, 255))
    array = to_array(white, replace(PLAIN, crop_mode="border", mean=(0.2, 0.4, 0.6)))
    assert np.allclose(array[:, 0], 0, atol=0.01)  # the mean
    assert np.allclose(array[:, 2:6], 1 - np.array([0.2, 0.4, 0.6])[:, None, None], atol=0.01)
    assert np.allclose(array[:, 7], 0, atol=0.01)


def test_a_crop_larger_than_the_resized_photo_has_a_black_border() -> None:
    array = to_array(Image.new("RGB", (8, 8), (255, 255, 255)), replace(PLAIN, crop_pct=2.0))
    assert array[0].sum() == 16
    assert array[0, 2:6, 2:6].min() == 1


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(8, 8), (7, 300), (300, 7), (1, 1), (224, 225), (2000, 1)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 1.15])
def test_every_crop_mode_gives_the_input_size(crop_mode: CropMode, size: tuple[int, int], crop_pct: float) -> None:
    preprocessing = Preprocessing(input_size=(3, 32, 24), crop_pct=crop_pct, crop_mode=crop_mode)
    assert to_array(Image.new("RGB", size), preprocessing).shape == (3, 32, 24)


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000)])
def test_a_strip_is_cropped_before_it_is_resized(size: tuple[int, int]) -> None:
    """With its shorter side resized to 256 pixels it would take 12 GB."""
    strip = Image.new("RGB", size)
    strip.paste((255, 255, 255), (size[0] // 2 - 1, size[1] // 2 - 1, size[0] // 2 + 2, size[1] // 2 + 2))
    array = to_array(strip, Preprocessing(input_size=(3, 224, 224), mean=(0, 0, 0), std=(1, 1, 1)))
    assert array.shape == (3, 224, 224)
    assert array.min() > 0.9


def png_header(width: int, height: int) -> bytes:
    """Return the start of a gray PNG, as far as its size can be read."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


@pytest.mark.parametrize(("width", "height"), [(1, 150_000_000), (65536, 1), (12_000, 12_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_too_many_pixels_is_rejected_before_it_is_decoded(
    width: int, height: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Pillow takes 4.4 GB to read a PNG of 1 x 150,000,000 pixels."""
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    with pytest.raises(ImageError, match=r"bomb\.png: .*pixel"):
        read_image(tmp_path / "bomb.png")
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_reads_every_mode(mode: str, tmp_path: Path) -> None:
    suffix = ".tiff" if mode == "CMYK" else ".png"
    Image.new(mode, (9, 9)).save(tmp_path / f"photo{suffix}")
    assert read_image(tmp_path / f"photo{suffix}").mode == "RGB"


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
def test_16_bits_are_scaled_and_not_clipped(dtype: type, suffix: str, tmp_path: Path) -> None:
    values: np.ndarray = np.array([[0, 257, 32896, 65535]]).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    assert np.asarray(read_image(tmp_path / f"deep.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_8_bits_stored_as_32_are_not_scaled(tmp_path: Path) -> None:
    """They were read as black; 16 bits of the same values are a dark image."""
    for dtype, expected in ((np.int32, [0, 100, 255]), (np.uint16, [0, 0, 1])):
        Image.fromarray(np.array([[0, 100, 255]]).astype(dtype)).save(tmp_path / "photo.tif")
        assert np.asarray(read_image(tmp_path / "photo.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [np.zeros((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_an_image_of_unknown_value_range_is_an_error(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "data.tif")
    with pytest.raises(ImageError, match=r"data\.tif: unknown value range"):
        read_image(tmp_path / "data.tif")


def test_turns_photos_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 4)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.png"):
        read_batch([tmp_path / "broken.png"], PLAIN)


def test_any_error_of_a_decoder_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's AVIF and TIFF readers raise AttributeError and struct.error for damaged files."""

    def broken(*_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'startswith'")

    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ImageError, match=r"photo\.png: 'NoneType' object"):
        read_image(tmp_path / "photo.png")


def test_a_truncated_photo_is_named(tmp_path: Path) -> None:
    content = sample_images()[0].read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"half\.png"):
        read_image(tmp_path / "half.png")


def test_a_folder_without_images_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.jpg").write_text("written by macOS")
    with pytest.raises(UsageError, match="no image in"):
        find_images(tmp_path)
    (tmp_path / "class").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "class" / "a.JPEG")
    assert [path.name for path in find_images(tmp_path)] == ["a.JPEG"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_pct": 0},
        {"crop_pct": 2.5},
        {"crop_mode": "corner"},
        {"interpolation": "cubic"},
        {"mean": (0.5,)},
        {"std": (0, 1, 1)},
        {"input_size": (2, 8, 8)},
        {"input_size": (3, 30000, 30000)},
        {"input_size": (3, 1, 2**63)},
        {"crop_pct": 1e-6},
        {"resize": "letterbox"},
        {"resize": "fit", "pad_side": "left"},
        {"resize": "fit", "edges": (8, 16)},
        {"resize": "shorter_side", "edges": (16, 8)},
        {"resize": "fit", "pad": (0.0, 0.0)},
    ],
)
def test_contradictions_are_usage_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Preprocessing(**wrong)  # type: ignore[arg-type]


def test_images_that_cannot_be_read_are_left_out_and_their_places_known(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "b.png")
    skipped: list[ImageError] = []
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    arrays, places = read_readable(paths, Preprocessing(input_size=(3, 8, 8)), skipped.append)
    assert (arrays.shape, places) == ((1, 3, 8, 8), [1])
    assert [error.path for error in skipped] == [paths[0], paths[2]]
    assert skipped_notes(skipped, 3)[0] == "2 of 3 images could not be read and were left out"
    nothing, places = read_readable(paths[:1], Preprocessing(input_size=(3, 8, 8)), skipped.append)
    assert (nothing.shape, places) == ((0, 3, 8, 8), [])


def test_heic_is_named_with_what_converts_it(tmp_path: Path) -> None:
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match=r"photo\.HEIC: HEIC is not supported; convert it to JPEG"):
        read_image(tmp_path / "photo.HEIC")


@pytest.mark.timeout(60)
def test_a_fifo_is_not_an_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photo.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "photo.png")
