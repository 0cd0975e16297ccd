"""Folders of images and of masks of the same names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit.dense.masks import IGNORED
from edgevit.dense.sampling import described, spread
from edgevit.errors import UsageError
from edgevit.images import exif_orientation, images_below, read_indices
from edgevit.types import Array

_MASK_FOLDERS = ("masks", "annotations", "labels")
_LOSSY = (".jpg", ".jpeg")
_SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
_MASK_MODES = ("1", "L", "P", "I", "I;16")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskDataset:
    """Images and the masks of their classes, whose pixels are class indices; 255 is ignored."""

    pairs: tuple[tuple[Path, Path], ...]
    reduce_zero_label: bool
    description: str

    def sample(self, limit: int | None) -> MaskDataset:
        """Return every k-th pair, at most `limit`."""
        places = spread(len(self.pairs), limit)
        return MaskDataset(
            pairs=tuple(self.pairs[place] for place in places),
            reduce_zero_label=self.reduce_zero_label,
            description=described(self.description, len(places), len(self.pairs)),
        )

    def read_mask(self, place: int, size: tuple[int, int], class_count: int) -> Array:
        """Return the mask, (H, W), of a photo that has this size upright.

        Raises UsageError if it has another size, may be of the photo before its EXIF rotation, or an unknown class.
        """
        photo, path = self.pairs[place]
        image = read_indices(path)
        if image.mode not in _MASK_MODES:
            raise UsageError(f"{path} is a mask of mode {image.mode}; save it as gray or palette, one class per pixel")
        mask = np.asarray(image).astype(np.int64)
        _require_upright(mask.shape, size, photo=photo, mask=path)
        if mask.min(initial=0) < 0:
            raise UsageError(f"{path} has the value {mask.min()}; classes count from 0, and {IGNORED} is ignored")
        if self.reduce_zero_label:
            mask = np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)
        beyond = mask[(mask >= class_count) & (mask != IGNORED)]
        if len(beyond):
            raise UsageError(
                f"{path} has the class {int(beyond.max())}, and the model has {class_count}; "
                "if 0 means no class, add --reduce-zero-label"
            )
        return np.asarray(mask)


def _require_upright(shape: tuple[int, ...], size: tuple[int, int], *, photo: Path, mask: Path) -> None:
    """Raise UsageError unless a mask of this shape is that of an upright photo of this size."""
    exif = exif_orientation(photo)
    remedy = (
        f"EXIF turns {photo.name} (orientation {exif}), not its mask; apply that to the photo or to the mask, and "
        "save them without EXIF"
    )
    if shape != size:
        difference = f"{mask} has {shape[1]}x{shape[0]} pixels, its image {size[1]}x{size[0]}"
        raise UsageError(f"{difference}; {remedy}" if exif > 1 and shape == size[::-1] else difference)
    swaps_sides = exif in _SIDEWAYS and size[0] != size[1]
    if exif > 1 and not swaps_sides and exif_orientation(mask) == 1:
        raise UsageError(f"{mask} may be of the photo as stored or upright: {remedy}")


def find_masks(folder: Path, *, reduce_zero_label: bool = False) -> MaskDataset:
    """Return the images in `folder`/images with the masks of the same name in `folder`/masks.

    Masks may lie in annotations or labels instead. Raises UsageError if an image has no mask or several, or
    a JPEG.
    """
    masks = next((place for name in _MASK_FOLDERS if (place := folder / name).is_dir()), None)
    if not (folder / "images").is_dir() or masks is None:
        raise UsageError(f"{folder} needs the folders images and masks, with masks named like their images")
    found: dict[str, Path] = {}
    for path in images_below(masks):
        if (other := found.setdefault(_stem(path, masks), path)) is not path:
            raise UsageError(f"{other} and {path} are masks of one image; keep one of them")
    images = images_below(folder / "images")
    if not images:
        raise UsageError(f"no image in {folder / 'images'}")
    pairs = []
    for image in images:
        mask = found.get(_stem(image, folder / "images"))
        if mask is None:
            raise UsageError(f"{image} has no mask in {masks}")
        if mask.suffix.lower() in _LOSSY:
            raise UsageError(f"{mask} is a JPEG, which changes classes; save masks as PNG")
        pairs.append((image, mask))
    return MaskDataset(
        pairs=tuple(pairs), reduce_zero_label=reduce_zero_label, description=f"{len(pairs)} masks in {masks.name}"
    )


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
