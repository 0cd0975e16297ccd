"""Classify images with a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import open_engine
from edgevit.dense.draw import class_name
from edgevit.errors import ParityError, UsageError
from edgevit.images import OnSkip, each_readable, find_images, to_array
from edgevit.metrics import find_logits, is_usable
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.types import Array, RunnableEngine

_SUM_ERROR = 1e-3  # of probabilities that a model outputs in lower precision
BOXES_SUFFIX, MASK_SUFFIX = ".boxes.jpg", ".mask.png"  # of the pictures that `pictures.py` draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The most likely classes of one image, best first."""

    image: Path
    top: tuple[tuple[int, str, float], ...]  # class index, class name, probability

    def to_json(self) -> dict[str, Any]:
        top = [{"class": index, "name": name, "probability": probability} for index, name, probability in self.top]
        return {"image": str(self.image), "top": top}


def classify(
    bundle: Bundle,
    images: Sequence[Path],
    *,
    top: int = 5,
    threads: int | None = None,
    cache_dir: Path | None = None,
    on_skip: OnSkip | None = None,
) -> tuple[Prediction, ...]:
    """Return the `top` classes of each image, preprocessed by the bundle's manifest.

    A folder in `images` means all images below it. Images that cannot be read are left out and reported to
    `on_skip`. Raises ImageError if there is no `on_skip` for them, or if none can be read.
    """
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    preprocessing, class_names = bundle.preprocessing, bundle.classes
    paths = image_files(images)
    predictions: list[Prediction] = []
    with open_engine(bundle, threads=threads, cache_dir=cache_dir) as engine:
        for path, photo in each_readable(paths, on_skip):
            logits = _logits(engine, to_array(photo, preprocessing)[None], bundle.options)
            predictions.append(Prediction(image=path, top=_top_classes(logits, class_names, top)))
    return tuple(predictions)


def image_files(images: Sequence[Path]) -> list[Path]:
    """Return the image files that are given, and those below each folder without the pictures of earlier runs.

    Raises UsageError if a folder has no other image.
    """
    return [path for image in images for path in (_photos(image) if image.is_dir() else [image])]


def _photos(folder: Path) -> list[Path]:
    photos = [path for path in find_images(folder) if not path.name.endswith((BOXES_SUFFIX, MASK_SUFFIX))]
    if not photos:
        raise UsageError(f"no photo in {folder}, only pictures (*{BOXES_SUFFIX}, *{MASK_SUFFIX}) of edgevit run")
    return photos


def run_one(engine: RunnableEngine, photo: Array, options: BuildOptions) -> dict[str, Array]:
    """Return the outputs for one photo, (1, C, H, W), which is repeated to fill the smallest batch of the engine."""
    return engine.run({engine.inputs[0].name: np.repeat(photo, options.smallest_batch, axis=0)})


def _logits(engine: Engine, photo: Array, options: BuildOptions) -> Array:
    """The logits of one photo, (classes,)."""
    output = find_logits(engine.outputs)
    if output is None:
        raise UsageError(
            f"edgevit run needs an image classifier with logits (N, classes); this model outputs {engine.outputs[0]}; "
            "use edgevit.load in Python"
        )
    logits = run_one(engine, photo, options)[output.name]
    if not is_usable(logits).all():
        raise ParityError("the engine's logits contain NaN or infinity; check the bundle: edgevit verify BUNDLE")
    first: Array = logits[0]
    return first


def _top_classes(logits: Array, class_names: Sequence[str] | None, top: int) -> tuple[tuple[int, str, float], ...]:
    probabilities = _probabilities(logits.astype(np.float64))
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((int(index), class_name(index, class_names), float(probabilities[index])) for index in order)


def _probabilities(logits: Array) -> Array:
    """Return the softmax of logits, (classes,), or the values themselves if the model's last layer is a softmax."""
    if logits.min() >= 0 and logits.max() <= 1 and abs(logits.sum() - 1) <= _SUM_ERROR:
        return logits
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum())
