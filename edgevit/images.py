"""Photos to arrays, bound to the model: calibration, parity, accuracy and `run` all read images through here.

The keys of `Preprocessing` are those of timm's `pretrained_cfg`, so that a model's published evaluation protocol
carries over by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgevit.errors import ImageError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})
_WHITE_16 = 65535
_LONGEST = 16  # times what is seen of a photo: a strip of pixels, scaled whole, would fill the memory

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a photo becomes a model's input: resize the shorter side, crop the centre, normalise."""

    input_size: tuple[int, int, int] = (3, 224, 224)  # channels, height, width
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        channels, height, width = self.input_size
        if channels not in (1, 3):
            raise UsageError(f"photos have 1 or 3 channels, and input_size says {channels}")
        if min(height, width) < 1 or not 0 < self.crop_pct <= 1:
            raise UsageError(f"no photo can be cut to {height}x{width} with crop_pct {self.crop_pct}")
        if self.interpolation not in _FILTERS:
            raise UsageError(f"no interpolation {self.interpolation!r}; there are {', '.join(_FILTERS)}")
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise UsageError("mean and std need one value a channel, and std above 0")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        size = data["input_size"]
        return cls(
            input_size=(size[0], size[1], size[2]),
            interpolation=data["interpolation"],
            crop_pct=data["crop_pct"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )


def read_image(path: Path) -> Image.Image:
    """The photo at `path`, upright (EXIF) and in RGB, whatever its mode (grey, palette, alpha, CMYK, 16 bits).

    Raises ImageError with the file's name where it cannot be read, or where nothing says what is white in it.
    """
    try:
        with Image.open(path) as image:
            return _to_8_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot read the image {path}: {error}") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow cuts 16-bit greys off at 255 as it converts them; here they are scaled. Raises ValueError."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _WHITE_16:
        raise ValueError("nothing says what is white in it; save it with 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def to_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """A photo as the model's input, (C, H, W) float32: shorter side to size / crop_pct, centre crop, normalise."""
    channels, height, width = preprocessing.input_size
    scaled = [math.floor(side / preprocessing.crop_pct) for side in (height, width)]
    ratio = max(scaled[0] / image.height, scaled[1] / image.width)
    image = _middle(image, math.ceil(_LONGEST * scaled[1] / ratio), math.ceil(_LONGEST * scaled[0] / ratio))
    # At least the scaled size on both sides: rounding must never leave a crop smaller than the input.
    size = (max(scaled[1], round(image.width * ratio)), max(scaled[0], round(image.height * ratio)))
    if size != image.size:
        image = image.resize(size, _FILTERS[preprocessing.interpolation])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    if channels == 1:
        image = image.convert("L")
    pixels = np.asarray(image, np.float32).reshape(height, width, channels) / 255
    pixels = (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image, with at most so many pixels a side."""
    if image.width <= width and image.height <= height:
        return image
    width, height = min(width, image.width), min(height, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_batch(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Several photos as one array, (N, C, H, W) float32. Raises ImageError naming the first that cannot be read."""
    return np.stack([to_array(read_image(path), preprocessing) for path in paths])


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted by name. Raises UsageError where there is none."""
    if not folder.is_dir():
        raise UsageError(f"no folder of images at {folder}")
    paths = images_below(folder)
    if not paths:
        raise UsageError(f"no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return paths


def images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path))


def is_image(path: Path) -> bool:
    """Hidden files are not counted: some systems leave `._photo.jpg`, which is no photo."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def sample_images() -> list[Path]:
    """The two photos that edgevit carries (see data/photos/LICENSE.md): real input where the user names none."""
    return find_images(Path(str(resources.files("edgevit"))) / "data" / "photos")
