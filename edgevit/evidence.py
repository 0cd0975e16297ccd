"""The inputs that every stage is judged on, and what PyTorch answers to them: photos first, seeded noise second."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from edgevit.errors import ExportError, UsageError
from edgevit.images import find_images, own_photos, read_batch, read_image, to_array
from edgevit.runtimes.parity import Reference
from edgevit.runtimes.torch_reference import flatten
from edgevit.subject import SEED, Subject
from edgevit.tensors import Array

PHOTOS = 8  # rows of photos at most
NOISE = 2  # rows of noise
CALIBRATION = 64  # photos that ranges are measured on, at most


def ask_pytorch(subject: Subject, output_names: Iterable[str], *, images: Path | None = None) -> tuple[Reference, ...]:
    """PyTorch's answers, image by image, to photos (where the input is an image) and to noise."""
    inputs = {"photos": _photos(subject, images), "noise": _noise(subject)}
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


def calibration_photos(subject: Subject, folder: Path) -> dict[str, Array]:
    """The photos of a folder as the subject's input, by name. Raises UsageError where it takes no photos."""
    if subject.preprocessing is None:
        raise UsageError(f"{subject.name} takes no photos; leave --calib out")
    paths = find_images(folder)[:CALIBRATION]
    return {subject.input_names[0]: read_batch(paths, subject.preprocessing)}


def _photos(subject: Subject, images: Path | None) -> tuple[Array, ...]:
    if subject.preprocessing is None:
        return ()
    paths = find_images(images)[:PHOTOS] if images is not None else own_photos()
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


def answers(subject: Subject, arrays: tuple[Array, ...], names: tuple[str, ...]) -> dict[str, Array]:
    """What PyTorch answers to each row of `arrays`, by output name. Raises ExportError for outputs without a batch."""
    rows: list[list[Array]] = []
    batch = len(subject.example[0])
    for index in range(len(arrays[0])):
        # A module that was written for one batch size alone is asked in that size.
        feeds = [torch.from_numpy(np.repeat(array[index : index + 1], batch, axis=0)) for array in arrays]
        with torch.inference_mode():
            answer = subject.module(*feeds)
        tensors = [answer] if isinstance(answer, torch.Tensor) else flatten(answer)
        if any(tensor.ndim == 0 or len(tensor) != batch for tensor in tensors):
            raise ExportError("every output needs the batch as its first axis; return per-image results")
        rows.append([tensor[:1].float().numpy() for tensor in tensors])
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
