"""COCO's result format, and the names of its classes' ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.dense.masks import run_lengths
from edgevit.dense.nms import Detections
from edgevit.errors import UsageError
from edgevit.types import Array

_NUMBER = re.compile(r"(?:.*_)?0*(\d{1,15})")  # COCO's files are 000000397133.jpg, or COCO_val2014_000000397133.jpg


def image_id(path: Path) -> int | str:
    """Return COCO's id of an image, which is the number in its file name; the name if there is none."""
    match = _NUMBER.fullmatch(path.stem)
    return int(match[1]) if match else path.name


def require_distinct_ids(paths: Iterable[Path]) -> None:
    """Raise UsageError if two images have the same id: their results could not be told apart."""
    seen: dict[int | str, Path] = {}
    for path in paths:
        if (other := seen.setdefault(image_id(path), path)) is not path:
            raise UsageError(
                f"{other} and {path} have the same id in COCO's format, {image_id(path)}; rename one of them, or give "
                "them to --coco separately"
            )


def box_results(
    found: Detections, image: int | str, category_ids: dict[int, int] | None = None
) -> list[dict[str, Any]]:
    """Return one entry per object: COCO's boxes are x, y, width, height.

    `category_ids` gives the id of each class; without it, and by COCO's custom, ids count from 1.
    """
    return [
        {
            "image_id": image,
            "category_id": category_ids[int(label)] if category_ids else int(label) + 1,
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]


def mask_results(classes: Array, image: int | str) -> list[dict[str, Any]]:
    """Return one entry per class of a segmented photo, (H, W), with its run lengths; ids count from 1."""
    return [
        {"image_id": image, "category_id": int(index) + 1, "segmentation": run_lengths(classes == index)}
        for index in np.unique(classes)
    ]
