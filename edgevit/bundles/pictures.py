"""Answers of detectors and segmentation models for photos: pictures, JSON, and COCO's result format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.dense import DenseModel, each_photo
from edgevit.bundles.predict import BOXES_SUFFIX, MASK_SUFFIX, image_files
from edgevit.dense.coco import box_results, image_id, mask_results, require_distinct_ids
from edgevit.dense.draw import class_name, draw_boxes, draw_mask
from edgevit.dense.masks import run_lengths
from edgevit.dense.nms import Detections, NmsOptions
from edgevit.errors import UsageError
from edgevit.files import os_reason, replacing
from edgevit.images import OnSkip
from edgevit.types import Array

_JPEG_QUALITY = 92
_JPEG_MAX_SIDE = 65500


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer for one photo: the picture that was drawn, lines to print, data for --json and COCO's results."""

    image: Path
    picture: Path
    lines: tuple[str, ...]
    data: dict[str, Any]
    coco: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"image": str(self.image), "picture": str(self.picture), **self.data}


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """Folder and content of pictures. `min_score`: of a box that is drawn; the data has those of `nms`."""

    out: Path = Path()
    min_score: float = 0.3
    nms: NmsOptions
    coco: bool = False


def answer(
    bundle: Bundle,
    images: Sequence[Path],
    options: PictureOptions,
    *,
    threads: int | None = None,
    cache_dir: Path | None = None,
    on_skip: OnSkip | None = None,
) -> tuple[Answer, ...]:
    """Run a detector or a segmentation model on photos, and draw its answers into `options.out`.

    Raises UsageError if a picture cannot be written or two photos have the same id in COCO's format, and ImageError as
    `each_photo`.
    """
    detects, names = bundle.manifest.model.task == "detection", bundle.classes
    photos = image_files(images)
    if options.coco:
        require_distinct_ids(photos)
    pictures = picture_paths(photos, options.out, BOXES_SUFFIX if detects else MASK_SUFFIX)
    answers: list[Answer] = []

    def work(model: DenseModel, path: Path, photo: Image.Image) -> None:
        if detects:
            answers.append(_boxes(path, photo, model.detect(photo, options.nms), names, pictures[path], options))
        else:
            answers.append(_mask(path, photo, model.segment(photo), names, pictures[path], coco=options.coco))

    each_photo(bundle, images, work, threads=threads, cache_dir=cache_dir, on_skip=on_skip)
    return tuple(answers)


def picture_paths(photos: Sequence[Path], out: Path, suffix: str) -> dict[Path, Path]:
    """Return a path in `out` for the picture of each photo, named after it; no photo is overwritten.

    Photos of one name that differ in suffix or folder get their suffix or a number in the picture's name.
    """
    taken = {path.resolve() for path in photos}
    found: dict[Path, Path] = {}
    for photo in photos:
        names = [photo.stem, photo.name, *(f"{photo.stem}-{number}" for number in range(2, len(photos) + 3))]
        places = (out / f"{name}{suffix}" for name in names)
        found[photo] = next(place for place in places if place.resolve() not in taken)
        taken.add(found[photo].resolve())
    return found


def _boxes(
    path: Path,
    photo: Image.Image,
    found: Detections,
    names: Sequence[str] | None,
    picture: Path,
    options: PictureOptions,
) -> Answer:
    shown = found.above(options.min_score)
    _save(draw_boxes(photo, shown, names), picture)
    objects = [
        {
            "class": int(label),
            "name": class_name(int(label), names),
            "score": float(score),
            "box": [round(float(value), 3) for value in box],
        }
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
    return Answer(
        image=path,
        picture=picture,
        lines=tuple(_object_line(each) for each in objects[: len(shown)]),
        data={"width": photo.width, "height": photo.height, "objects": objects},
        coco=box_results(found, image_id(path)) if options.coco else [],
    )


def _object_line(found: dict[str, Any]) -> str:
    left, top, right, bottom = found["box"]
    return f"{found['score']:6.1%}  {found['name']}  at {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}"


def _mask(
    path: Path, photo: Image.Image, classes: Array, names: Sequence[str] | None, picture: Path, *, coco: bool
) -> Answer:
    _save(draw_mask(photo, classes, names), picture)
    found, counts = np.unique(classes, return_counts=True)
    segments = [
        {
            "class": int(found[index]),
            "name": class_name(int(found[index]), names),
            "share": float(counts[index] / classes.size),
            "pixels": int(counts[index]),
            "rle": run_lengths(classes == found[index]),
        }
        for index in np.argsort(-counts, kind="stable")
    ]
    return Answer(
        image=path,
        picture=picture,
        lines=tuple(f"{each['share']:6.1%}  {each['name']}" for each in segments),
        data={"width": photo.width, "height": photo.height, "segments": segments},
        coco=mask_results(classes, image_id(path)) if coco else [],
    )


def _save(picture: Image.Image, path: Path) -> None:
    """Write a picture, replacing an older one. Raises UsageError if that fails."""
    if path.suffix == ".jpg" and max(picture.size) > _JPEG_MAX_SIDE:
        picture.thumbnail((_JPEG_MAX_SIDE, _JPEG_MAX_SIDE))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            if path.suffix == ".jpg":
                picture.save(part, "JPEG", quality=_JPEG_QUALITY)
            else:
                picture.save(part, "PNG", compress_level=1)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {os_reason(error)}; choose another folder with --out") from error
