"""The inputs that every stage is judged on, and what PyTorch answers to them: photos first, seeded noise second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgevit.datasets import LabelledImages, find_labelled
from edgevit.errors import UsageError
from edgevit.images import Preprocessing, find_images, read_batch
from edgevit.metrics import Evaluation, OnImages, evaluate
from edgevit.models.loading import LoadedModel
from edgevit.types import Array, Reference, Run, TensorSpec

CALIBRATION = 300  # photos that ranges are measured on, at most
FLAT = 2 / 255  # a photo whose values spread less, over all its pixels, is one colour


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDataset:
    """Labelled images, and how a subject is asked about them."""

    images: LabelledImages
    preprocessing: Preprocessing
    batch: int
    input_name: str
    output_name: str

    def evaluate(self, contestants: Mapping[str, Run], *, progress: OnImages | None = None) -> tuple[Evaluation, ...]:
        """Every contestant's answers to every image. Raises ImageError for one that cannot be read."""
        return evaluate(
            contestants,
            self.images,
            self.preprocessing,
            batch=self.batch,
            input_name=self.input_name,
            output_name=self.output_name,
            progress=progress,
        )

    def spread(self, limit: int) -> EvalDataset:
        """The exam with at most `limit` of its images."""
        return replace(self, images=self.images.spread(limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceData:
    """What every stage of a run is judged on."""

    subject: LoadedModel
    references: tuple[Reference, ...]  # photos first, where the subject takes photos
    calibration: Mapping[str, Array]  # the inputs that a lower precision is chosen by, each (rows, …)
    exam: EvalDataset | None


def find_exam(subject: LoadedModel, folder: Path, output: TensorSpec, *, batch: int) -> EvalDataset:
    """The labelled images of a folder for a subject. Raises UsageError where it takes no photos or knows no classes."""
    classes = output.shape[1] if len(output.shape) == 2 else None
    if subject.preprocessing is None or not isinstance(classes, int) or classes < 2:
        raise UsageError(f"{subject.name} answers {output} to no photo of a class; leave --eval out")
    return EvalDataset(
        images=find_labelled(folder, classes=subject.classes, class_count=classes),
        preprocessing=subject.preprocessing,
        batch=batch,
        input_name=subject.input_names[0],
        output_name=output.name,
    )


def require_images(subject: LoadedModel, images: Path | None) -> None:
    """Raises UsageError where photos are to be judged on and there are none, or the subject takes none."""
    if images is not None and subject.preprocessing is None:
        raise UsageError(f"{subject.name} takes no photos, and is judged on noise; leave --images out")
    if images is not None:
        find_images(images)


def calibration_inputs(subject: LoadedModel, calib: Path | Mapping[str, Array]) -> Mapping[str, Array]:
    """The inputs of a folder of photos, or those given, once it is seen that something can be told from them."""
    if isinstance(calib, Path):
        return _calibration_photos(subject, calib)
    if calib.keys() != set(subject.input_names):
        raise UsageError(f"calib holds the inputs {sorted(calib)}; the model takes {sorted(subject.input_names)}")
    for name, example in zip(subject.input_names, subject.example, strict=True):
        _require_rows_like(calib[name], example, name)
    rows = {len(array) for array in calib.values()}
    if len(rows) != 1 or 0 in rows:
        raise UsageError("calib needs the same number of rows for every input, and at least one")
    return calib


def _require_rows_like(array: object, example: torch.Tensor, name: str) -> None:
    """Raises UsageError unless these are rows of the input that the example is one of, finite numbers all."""
    dtype = "float32" if example.is_floating_point() else str(example.dtype).removeprefix("torch.")
    wanted = f"{dtype} of shape {['rows', *example.shape[1:]]}"
    if not isinstance(array, np.ndarray):
        raise UsageError(f"calib gives {type(array).__name__} for {name}; give a NumPy array, {wanted}")
    if array.shape[1:] != tuple(example.shape[1:]) or array.ndim != example.ndim or array.dtype.name != dtype:
        raise UsageError(f"calib gives {array.dtype} of shape {list(array.shape)} for {name}; give {wanted}")
    if not np.isfinite(array).all():
        raise UsageError(f"calib holds NaN or infinity for {name}; no range can be told from that, leave such rows out")


def _calibration_photos(subject: LoadedModel, folder: Path) -> dict[str, Array]:
    """Some photos of a folder, evenly spread over it.

    Raises UsageError where the subject takes no photos, or where most of them are of one colour: ranges measured on
    such would fit nothing else.
    """
    preprocessing = subject.preprocessing
    if preprocessing is None:
        raise UsageError(f"{subject.name} takes no photos; leave --calib out, or give arrays in Python: calib={{...}}")
    found = find_images(folder)
    count = min(CALIBRATION, len(found))
    photos = read_batch([found[index * len(found) // count] for index in range(count)], preprocessing)
    spread = (photos * np.asarray(preprocessing.std, np.float32)[:, None, None]).std((2, 3)).max(1)  # (n,), 0 to 1
    flat = int((spread < FLAT).sum())
    if flat > count / 2:
        raise UsageError(
            f"{flat} of {count} photos in {folder} show one colour and nothing else: no range can be told from them; "
            "give photos like those that the model will see"
        )
    return {subject.input_names[0]: photos}
