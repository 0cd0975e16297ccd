"""The inputs that every stage is judged on, and what PyTorch answers to them: photos first, seeded noise second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgevit.datasets import LabelledImages, find_labelled
from edgevit.errors import ExportError, UsageError
from edgevit.images import Preprocessing, find_images, read_batch, read_image, sample_images, to_array
from edgevit.metrics import Evaluation, OnImages, evaluate
from edgevit.models.loading import SEED, Subject
from edgevit.runtimes.parity import PHOTOS, Reference, Run
from edgevit.runtimes.pytorch import flatten
from edgevit.types import Array, TensorSpec

ROWS = 8  # rows of photos at most
NOISE = 2  # rows of noise
CALIBRATION = 300  # photos that ranges are measured on, at most
FLAT = 2 / 255  # a photo whose values spread less, over all its pixels, is one colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
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

    def spread(self, limit: int) -> Exam:
        """The exam with at most `limit` of its images."""
        return replace(self, images=self.images.spread(limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What every stage of a run is judged on."""

    subject: Subject
    references: tuple[Reference, ...]  # photos first, where the subject takes photos
    calibration: Mapping[str, Array]  # the inputs that a lower precision is chosen by, each (rows, …)
    exam: Exam | None


def find_exam(subject: Subject, folder: Path, output: TensorSpec, *, batch: int) -> Exam:
    """The labelled images of a folder for a subject. Raises UsageError where it takes no photos or knows no classes."""
    classes = output.shape[1] if len(output.shape) == 2 else None
    if subject.preprocessing is None or not isinstance(classes, int) or classes < 2:
        raise UsageError(f"{subject.name} answers {output} to no photo of a class; leave --eval out")
    return Exam(
        images=find_labelled(folder, classes=subject.classes, class_count=classes),
        preprocessing=subject.preprocessing,
        batch=batch,
        input_name=subject.input_names[0],
        output_name=output.name,
    )


def require_images(subject: Subject, images: Path | None) -> None:
    """Raises UsageError where photos are to be judged on and there are none, or the subject takes none."""
    if images is not None and subject.preprocessing is None:
        raise UsageError(f"{subject.name} takes no photos, and is judged on noise; leave --images out")
    if images is not None:
        find_images(images)


def ask_pytorch(subject: Subject, output_names: Iterable[str], *, images: Path | None = None) -> tuple[Reference, ...]:
    """PyTorch's answers, image by image, to photos (where the input is an image) and to noise."""
    inputs = {PHOTOS: _photos(subject, images), "noise": _noise(subject)}
    names = tuple(output_names)
    return tuple(
        Reference(
            kind=kind,
            inputs=dict(zip(subject.input_names, arrays, strict=True)),
            outputs=answers(subject, arrays, names),
        )
        for kind, arrays in inputs.items()
        if arrays
    )


def calibration_inputs(subject: Subject, calib: Path | Mapping[str, Array]) -> Mapping[str, Array]:
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


def _calibration_photos(subject: Subject, folder: Path) -> dict[str, Array]:
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


def _photos(subject: Subject, images: Path | None) -> tuple[Array, ...]:
    if subject.preprocessing is None:
        return ()
    paths = find_images(images)[:ROWS] if images is not None else sample_images()
    photos = [read_image(path) for path in paths]
    rows = [to_array(photo, subject.preprocessing) for photo in photos]
    if images is None:  # two photos make six views: as they are, mirrored, and their centres
        rows += [np.ascontiguousarray(row[:, :, ::-1]) for row in rows]
        centres = [photo.crop(_centre(photo.width, photo.height)) for photo in photos]
        rows += [to_array(centre, subject.preprocessing) for centre in centres]
    return (np.stack(rows),)


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    return (width // 4, height // 4, width - width // 4, height - height // 4)


def _noise(subject: Subject) -> tuple[Array, ...]:
    """Normal noise for floating-point inputs; an example's own values for the others, which noise could not index."""
    random = np.random.default_rng(SEED)
    arrays: list[Array] = []
    for tensor in subject.example:
        shape = (NOISE, *tensor.shape[1:])
        if tensor.is_floating_point():
            arrays.append(random.standard_normal(shape).astype(np.float32))
        else:
            arrays.append(np.repeat(tensor[:1].numpy(), NOISE, axis=0))
    return tuple(arrays)


def _answer(subject: Subject, feeds: list[torch.Tensor]) -> object:
    """What the module makes of inputs that it has not been traced with. Raises ExportError where it fails."""
    try:
        with torch.inference_mode():
            return subject.module(*feeds)
    except (Exception, SystemExit) as error:  # user code
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ExportError(
            f"{subject.name} failed on other values than its example's: {type(error).__name__}: {reason}"
        ) from error


def answers(subject: Subject, arrays: tuple[Array, ...], names: tuple[str, ...]) -> dict[str, Array]:
    """What PyTorch answers to each row of `arrays`, by output name.

    Raises ExportError for outputs without a batch, and for what is no tensor.
    """
    rows: list[list[Array]] = []
    batch = len(subject.example[0])
    for index in range(len(arrays[0])):
        # A module that was written for one batch size alone is asked in that size.
        feeds = [torch.from_numpy(np.repeat(array[index : index + 1], batch, axis=0)) for array in arrays]
        answer = _answer(subject, feeds)
        tensors = [answer] if isinstance(answer, torch.Tensor) else flatten(answer)
        if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors) or "nothing"
            raise ExportError(f"{subject.name} answers with {kinds}; return tensors, and nothing else")
        if any(tensor.ndim == 0 or len(tensor) != batch for tensor in tensors):
            raise ExportError("every output needs the batch as its first axis; return per-image results")
        rows.append([tensor[:1].float().numpy() for tensor in tensors])
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
