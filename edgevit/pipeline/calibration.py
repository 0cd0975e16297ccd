"""Calibration inputs for fp16 and int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgevit.errors import ImageError, UsageError
from edgevit.images import find_images, read_readable, warn_of_skipped
from edgevit.models.description import ModelDescription
from edgevit.types import Array, TensorSpec

MAX_PHOTOS = 300  # of a folder
MIN_SPREAD = 2 / 255  # standard deviation over the pixels of a photo; a photo below it has a single color


def calibration_inputs(
    model: ModelDescription, calib: Path | Mapping[str, Array], *, strict: bool = False
) -> Mapping[str, Array]:
    """Return calibration inputs by name, each (rows, ...): the photos of a folder, or the given arrays, checked.

    Photos that cannot be read are left out, with a warning; ImageError is raised for the first if `strict`, or if none
    can be read. Raises UsageError if the arrays do not fit the inputs of the model, or activation ranges cannot be
    derived.
    """
    if isinstance(calib, Path):
        return _photo_inputs(model, calib, strict=strict)
    if calib.keys() != set(model.input_names):
        raise UsageError(f"calib has the inputs {sorted(calib)}; the model takes {sorted(model.input_names)}")
    for spec in model.inputs:
        _require_rows_like(calib[spec.name], spec)
    rows = {len(array) for array in calib.values()}
    if len(rows) != 1 or 0 in rows:
        raise UsageError("calib needs the same number of rows for every input, and at least one")
    return calib


def _require_rows_like(array: object, spec: TensorSpec) -> None:
    """Raise UsageError unless `array` holds finite rows of the dtype and shape of an input."""
    name, shape = spec.name, spec.with_batch(1)
    expected = f"{spec.dtype} of shape {['rows', *shape[1:]]}"
    if not isinstance(array, np.ndarray):
        raise UsageError(f"calib has a {type(array).__name__} for {name}; pass a NumPy array, {expected}")
    if array.shape[1:] != shape[1:] or array.ndim != len(shape) or array.dtype.name != spec.dtype:
        raise UsageError(f"calib has {array.dtype} of shape {list(array.shape)} for {name}; expected {expected}")
    if not np.isfinite(array).all():
        raise UsageError(f"calib has NaN or infinity for {name}; remove those rows")


def _photo_inputs(model: ModelDescription, folder: Path, *, strict: bool) -> dict[str, Array]:
    """Return at most MAX_PHOTOS photos, evenly spread over the folder.

    Raises UsageError if the model takes no photos, or if most photos have a single color: ranges measured on such
    photos would fit nothing else.
    """
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UsageError(
            f"--calib needs a model with one image input, and {model.name} has none; "
            "pass arrays in Python: edgevit.export(..., calib={...})"
        )
    found = find_images(folder)
    count = min(MAX_PHOTOS, len(found))
    skipped: list[ImageError] = []
    paths = [found[index * len(found) // count] for index in range(count)]
    photos, _ = read_readable(paths, preprocessing, skipped.append)
    if skipped and (strict or not len(photos)):
        raise skipped[0]
    warn_of_skipped("--calib", skipped, count)
    count = len(photos)
    spread = (photos * np.asarray(preprocessing.std, np.float32)[:, None, None]).std((2, 3)).max(1)  # (n,), 0 to 1
    flat = int((spread < MIN_SPREAD).sum())
    if flat > count / 2:
        raise UsageError(
            f"{flat} of {count} photos in {folder} show a single color; "
            "calibrate with photos like those the model will see"
        )
    return {model.input_names[0]: photos}
