"""Image preprocessing, shared by calibration, parity, evaluation and `edgevit run`.

The fields of `Preprocessing` have the names of timm's `pretrained_cfg`, so that a model's published settings can be
copied.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from edgevit.errors import ImageError, UsageError
from edgevit.files import first_line, os_reason
from edgevit.placement import Placement, place, rescaled
from edgevit.types import (
    CROP_MODES,
    INTERPOLATIONS,
    PAD_SIDES,
    RESIZE_MODES,
    CropMode,
    Interpolation,
    PadSide,
    ResizeMode,
)
from edgevit.untrusted import open_regular

_LOG = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})
MAX_NAMED = 10  # images that were left out
HEIC_SUFFIXES = frozenset({".heic", ".heif"})  # of phone cameras; read by pillow-heif or libheif, not by Pillow
MAX_SIDE = 65535  # the largest side of a JPEG; Pillow needs 16 bytes and more for each row of a narrow image
MAX_PIXELS = 89_478_485  # 256 MB in RGB; the number from which Pillow warns of a decompression bomb
MAX_CROP_PCT = 2.0  # above 1 the resized image is smaller than the input and gets a black border
_MAX_RESIZED_PIXELS = 1 << 25  # of the resized image that the input is cropped from
_WHITE_8, _WHITE_16 = 255, 65535
_MAX_ASPECT = 16  # of the cropped region; resizing a long strip of pixels as a whole would exhaust memory

_PLACEMENT_FIELDS = frozenset({"resize", "edges", "pad", "pad_side"})

_TURNED = range(2, 9)  # EXIF orientations that are not upright

_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}

T = TypeVar("T")
OnSkip: TypeAlias = Callable[[ImageError], None]  # called for each image that cannot be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input: resize, crop or pad, normalize.

    `resize` "crop", for classifiers: resize to size / crop_pct, crop the center. `crop_mode` says how the image is
    resized. "center": its shorter side, and the rest is cut off. "squash": both sides, without regard to the aspect
    ratio. "border": its longer side, and borders of the mean color are added.

    The other values of `resize` show the whole image, for boxes and masks: see `placement`. "fit": as large as the
    input allows. "stretch": to the input's size. "shorter_side": to `edges`, the shortest and the longest edge
    (without them those of the input), and no larger than the input. The rest is padded with `pad`, one value per
    channel after normalization (without it 0, the mean color), at the bottom and right or around the center.

    Raises UsageError if the values contradict each other.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)  # channels, height, width
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: ResizeMode = "crop"
    edges: tuple[int, int] | None = None
    pad: tuple[float, ...] | None = None
    pad_side: PadSide = "bottom_right"

    def __post_init__(self) -> None:
        channels, height, width = self.input_size
        if channels not in (1, 3):
            raise UsageError(f"input_size needs 1 or 3 channels, not {channels}")
        if min(height, width) < 1 or not 0 < self.crop_pct <= MAX_CROP_PCT:
            raise UsageError(
                f"invalid input_size {height}x{width} or crop_pct {self.crop_pct}; "
                f"sizes must be at least 1, and 0 < crop_pct <= {MAX_CROP_PCT:g}"
            )
        if max(height, width) > MAX_SIDE or height * width > _MAX_RESIZED_PIXELS * self.crop_pct**2:
            raise UsageError(
                f"input_size {height}x{width} with crop_pct {self.crop_pct} needs images of more than "
                f"{_MAX_RESIZED_PIXELS / 1e6:.0f} megapixels; use a smaller input_size"
            )
        if self.interpolation not in _FILTERS:
            raise UsageError(f"unknown interpolation {self.interpolation!r}; use one of {', '.join(_FILTERS)}")
        if self.crop_mode not in CROP_MODES:
            raise UsageError(f"unknown crop_mode {self.crop_mode!r}; use one of {', '.join(CROP_MODES)}")
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise UsageError("mean and std need one value per channel, and std must be above 0")
        self._require_placement()

    def _require_placement(self) -> None:
        """Raise UsageError unless the settings of `resize` fit together."""
        for name, value, known in (("resize", self.resize, RESIZE_MODES), ("pad_side", self.pad_side, PAD_SIDES)):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}; use one of {', '.join(known)}")
        if self.edges is not None and (self.resize != "shorter_side" or not 1 <= self.edges[0] <= self.edges[1]):
            raise UsageError(f"edges {self.edges} need resize 'shorter_side', and a shortest edge that is no longer")
        if self.pad is not None and len(self.pad) != self.input_size[0]:
            raise UsageError("pad needs one value per channel")

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width from which the input is cropped."""
        return (math.floor(self.input_size[1] / self.crop_pct), math.floor(self.input_size[2] / self.crop_pct))

    def to_json(self) -> dict[str, Any]:
        settings = asdict(self)
        if self.resize == "crop":  # written as before there were other modes
            return {name: value for name, value in settings.items() if name not in _PLACEMENT_FIELDS}
        return settings | {"pad": list(self.pad or (0.0,) * self.input_size[0])}

    def place(self, image: Image.Image) -> Placement:
        """Return where the image lies in the model's input. Raises UsageError for `resize` "crop", which cuts it."""
        if self.resize == "crop":
            raise UsageError("the preprocessing crops images, so boxes and masks cannot be mapped back to them")
        limit, photo = self.input_size[1:], (image.height, image.width)
        resized = limit if self.resize == "stretch" else rescaled(photo, limit, edges=self._edges)
        return place(photo, resized, limit, centered=self.pad_side == "center")

    @property
    def _edges(self) -> tuple[int, int] | None:
        """Shortest and longest edge of the resized image; None: as large as the input allows."""
        limit = self.input_size[1:]
        return None if self.resize == "fit" else self.edges or (min(limit), max(limit))

    def __str__(self) -> str:
        """Return the settings in one line."""
        if self.resize != "crop":
            return self._placement_text()
        resized = "x".join(map(str, self.resized)) if self.crop_mode != "center" else str(min(self.resized))
        size = f"{self.input_size[1]}x{self.input_size[2]}"
        return (
            f"{self.interpolation} resize to {resized} ({self.crop_mode}), crop to {size}, "
            f"mean {_listed(self.mean)}, std {_listed(self.std)}"
        )

    def _placement_text(self) -> str:
        edges = f" {self.edges[0]} to {self.edges[1]}" if self.edges else ""
        side = {"bottom_right": "bottom and right", "center": "around the center"}[self.pad_side]
        pad = "" if self.resize == "stretch" else f", padded with {_listed(self.pad or (0.0,))} {side}"
        return (
            f"{self.interpolation} resize to {self.input_size[1]}x{self.input_size[2]} ({self.resize}{edges}){pad}, "
            f"mean {_listed(self.mean)}, std {_listed(self.std)}"
        )


def crop_fraction(crop: int, resized: int) -> float:
    """Return the crop_pct for which an image is resized to `resized` and cropped to `crop`.

    Raises UsageError if the crop is larger.
    """
    if not 1 <= crop <= resized:
        raise UsageError(f"a crop of {crop} pixels does not fit into an image resized to {resized}")
    exact = crop / resized
    return exact if int(crop / exact) == resized else crop / (resized + 0.5)  # size / crop_pct is rounded down


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def read_image(path: Path) -> Image.Image:
    """Return the image at `path` in RGB and upright (EXIF). Gray, palette, alpha, CMYK and 16 bits are converted.

    Raises ImageError if the file cannot be read or its value range is unknown.
    """

    def upright(image: Image.Image) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)
        return _to_8_bits(image).convert("RGB")

    return _read(path, upright)


def read_indices(path: Path) -> Image.Image:
    """Return the mask at `path` upright (EXIF); palette indices stay indices. Raises ImageError."""
    return _read(path, ImageOps.exif_transpose)


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of the image at `path`, 1 to 8; 1, upright, if it has none. Raises ImageError."""

    def orientation(image: Image.Image) -> int:
        stored = image.getexif().get(ExifTags.Base.Orientation)
        return next((known for known in _TURNED if known == stored), 1)

    return _read(path, orientation)


def _read(path: Path, convert: Callable[[Image.Image], T]) -> T:
    try:
        with open(open_regular(path), "rb") as file, _open(file) as image:  # noqa: PTH123  # a descriptor
            return convert(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise anything for a damaged file
        raise ImageError(f"cannot read the image {path}: {_reason(path, error)}", path=path) from error


def _reason(path: Path, error: Exception) -> str:
    """The message of an error without the file object that Pillow puts into it."""
    if isinstance(error, UnidentifiedImageError):
        if path.suffix.lower() in HEIC_SUFFIXES:
            return "HEIC is not supported; convert it to JPEG, for example: heif-convert photo.heic photo.jpg"
        return "not an image, or of a format that Pillow does not read"
    return os_reason(error) if isinstance(error, OSError) else first_line(error)


def _open(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding it. Raises ValueError if it has more than `MAX_PIXELS` or `MAX_SIDE` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error here
        image = Image.open(file)
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(
            f"{image.width}x{image.height} pixels are too many; resize it to at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels and {MAX_SIDE} pixels per side"
        )
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray values to 8 bits; Pillow would clip them at 255. Raises ValueError if the range is unknown.

    Integers of 32 bits say nothing of their range; with values up to 255 they are taken as 8 bits.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _WHITE_16:
        raise ValueError("unknown value range; convert it to 8 or 16 bits")
    if image.mode == "I" and values.max() <= _WHITE_8:
        return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray((values / 257).round().astype(np.uint8))


def to_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the model's input, (C, H, W) float32: resized, cropped to the center or padded, normalized."""
    return _cropped(image, preprocessing) if preprocessing.resize == "crop" else _placed(image, preprocessing)


def _placed(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the whole image, resized and normalized, on padding."""
    placement = preprocessing.place(image)
    (top, left), (height, width) = placement.offset, placement.resized
    pad = preprocessing.pad or (0.0,) * preprocessing.input_size[0]
    canvas = np.empty(preprocessing.input_size, np.float32)
    canvas[:] = np.asarray(pad, np.float32)[:, None, None]
    resized = _resize(image, (width, height), preprocessing)
    canvas[:, top : top + height, left : left + width] = _normalize(resized, preprocessing)
    return canvas


def _cropped(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    _, height, width = preprocessing.input_size
    resize = {"center": _resize_shorter_side, "squash": _resize_both_sides, "border": _resize_longer_side}
    image = resize[preprocessing.crop_mode](image, preprocessing)
    left, top = _margin(image.width, width), _margin(image.height, height)
    image = image.crop((left, top, left + width, top + height))  # black outside of the image
    return _normalize(image, preprocessing)


def _normalize(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the pixels, (C, H, W) float32."""
    channels = preprocessing.input_size[0]
    if channels == 1:
        image = image.convert("L")
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, channels) / 255
    pixels = (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)


def _margin(side: int, crop: int) -> int:
    """Return where a centered crop begins, rounded as torchvision does; negative if the image is smaller."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _resize_shorter_side(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    height, width = preprocessing.resized
    ratio = max(height / image.height, width / image.width)
    image = _center(image, math.ceil(_MAX_ASPECT * width / ratio), math.ceil(_MAX_ASPECT * height / ratio))
    if height == width:  # as torchvision's Resize, which rounds the longer side down
        shorter, longer = min(image.size), max(image.size)
        longer = int(height * longer / shorter)
        size = (height, longer) if image.width <= image.height else (longer, height)
    else:  # at least the resized size on both sides: after rounding, the image must not be smaller than the crop
        size = (max(width, round(image.width * ratio)), max(height, round(image.height * ratio)))
    return _resize(image, size, preprocessing)


def _resize_both_sides(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    height, width = preprocessing.resized
    return _resize(image, (width, height), preprocessing)


def _resize_longer_side(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize the image to fit, and put it in the middle of a canvas of the mean color, no smaller than the input."""
    height, width = preprocessing.resized
    ratio = min(height / image.height, width / image.width)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    image = _resize(image, size, preprocessing)
    canvas = (max(size[0], preprocessing.input_size[2]), max(size[1], preprocessing.input_size[1]))
    color = tuple(min(255, max(0, round(255 * value))) for value in preprocessing.mean)
    padded = Image.new("RGB", canvas, color if len(color) == 3 else color * 3)
    padded.paste(image, ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2))
    return padded


def _resize(image: Image.Image, size: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    return image if size == image.size else image.resize(size, _FILTERS[preprocessing.interpolation])


def _center(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the center of an image, at most `width` x `height` pixels."""
    if image.width <= width and image.height <= height:
        return image
    width, height = min(width, image.width), min(height, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_batch(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return images as one array, (N, C, H, W) float32. Raises ImageError for the first that cannot be read."""
    return np.stack([to_array(read_image(path), preprocessing) for path in paths])


def read_readable(
    paths: Sequence[Path], preprocessing: Preprocessing, on_skip: OnSkip
) -> tuple[NDArray[np.float32], list[int]]:
    """Return the images that can be read, (n, C, H, W), and their indices in `paths`.

    Each other image is passed to `on_skip`. n is 0 if no image can be read.
    """
    arrays = [_read_or_skip(path, preprocessing, on_skip) for path in paths]
    read = [array for array in arrays if array is not None]
    places = [place for place, array in enumerate(arrays) if array is not None]
    return np.stack(read) if read else np.empty((0, *preprocessing.input_size), np.float32), places


def _read_or_skip(path: Path, preprocessing: Preprocessing, on_skip: OnSkip) -> NDArray[np.float32] | None:
    try:
        return to_array(read_image(path), preprocessing)
    except ImageError as error:
        on_skip(error)
        return None


def each_readable(paths: Sequence[Path], on_skip: OnSkip | None) -> Iterator[tuple[Path, Image.Image]]:
    """Yield each path with its image. Those that cannot be read are left out and passed to `on_skip`.

    Raises ImageError if there is no `on_skip` for them, or if none can be read.
    """
    skipped = 0
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            skipped += 1
            if on_skip is None or skipped == len(paths):
                raise
            on_skip(error)
            continue
        yield path, image


def skipped_notes(skipped: Sequence[ImageError], total: int) -> list[str]:
    """Return one line for the images that were left out, and the reason of each of the first few."""
    if not skipped:
        return []
    return [f"{len(skipped)} of {total} images could not be read and were left out", *map(str, skipped[:MAX_NAMED])]


def warn_of_skipped(option: str, skipped: Sequence[ImageError], total: int) -> None:
    """Log the images of an option that were left out."""
    for line in skipped_notes(skipped, total):
        _LOG.warning("edgevit: %s: %s", option, line)


def find_images(folder: Path) -> list[Path]:
    """Return the image files in `folder` and its subfolders, sorted by path. Raises UsageError if there is none."""
    if not folder.is_dir():
        raise UsageError(f"no folder of images at {folder}")
    paths = images_below(folder)
    if not paths:
        raise UsageError(f"no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return paths


def images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path))


def is_image(path: Path) -> bool:
    """Return whether `path` is a file with an image suffix that is not hidden (macOS writes `._photo.jpg`)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def sample_images() -> list[Path]:
    """Return the two photos in the package (see data/photos/LICENSE.md), used if the user gives no images."""
    return find_images(Path(str(resources.files("edgevit"))) / "data" / "photos")
