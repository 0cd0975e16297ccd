"""Photos with true boxes or masks, and the mAP or mIoU of models on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from edgevit.bundles.dense import DenseModel
from edgevit.dense.average_precision import match, mean_average_precisions
from edgevit.dense.bootstrap import Estimate
from edgevit.dense.coco import box_results
from edgevit.dense.coco_dataset import CocoDataset, read_coco
from edgevit.dense.mask_dataset import MaskDataset, find_masks
from edgevit.dense.masks import IGNORED
from edgevit.dense.mean_iou import PixelCounts, class_ious, count_pixels, mean_iou_and_accuracy
from edgevit.errors import ImageError, UsageError
from edgevit.images import read_image
from edgevit.metrics import Drop, OnImages
from edgevit.types import Interval, Task

_CHANCE_MAP = 0.01  # boxes at random are hardly ever right


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseEvaluation:
    """The figures of one candidate by name; the first is the one to compare."""

    name: str
    precision: str = "unknown"  # the executed precision
    images: int
    figures: Mapping[str, Estimate]
    details: Mapping[str, Any]
    chance: float  # the main figure of a guess
    notes: tuple[str, ...] = ()  # on the labels

    @property
    def main(self) -> Estimate:
        return next(iter(self.figures.values()))

    @property
    def metric(self) -> str:
        """Name of the main figure."""
        return next(iter(self.figures))

    @property
    def accuracy(self) -> float:
        """The main figure."""
        return self.main.value

    @property
    def may_be_guessing(self) -> bool:
        """Whether the accuracy may be no better than chance."""
        return self.main.interval.low <= self.chance


def lost_points(reference: DenseEvaluation, other: DenseEvaluation) -> Drop:
    """Return how much of the main figure `other` loses against `reference`, with the interval of paired draws."""
    lost = reference.main.minus(other.main)
    return Drop(100 * lost.value, Interval(100 * lost.interval.low, 100 * lost.interval.high))


class LabeledPhotos(ABC):
    """Photos with labels of one kind."""

    paths: tuple[Path, ...]
    description: str
    metric: ClassVar[str]  # name of the main figure

    @abstractmethod
    def sample(self, limit: int | None) -> LabeledPhotos:
        """Return every k-th photo, at most `limit`."""

    @abstractmethod
    def record(self, place: int, photo: Image.Image, model: DenseModel) -> Any:
        """Return the record of the model's answer for a photo that `evaluation` reads."""

    @abstractmethod
    def evaluation(self, name: str, records: Sequence[Any], skipped: Sequence[ImageError]) -> DenseEvaluation:
        """Return the figures of one model from its records of all photos but the skipped ones.

        Raises UsageError if none of them has a label.
        """


class LabeledBoxes(LabeledPhotos):
    """Photos with boxes, for mAP."""

    metric = "mAP"

    def __init__(self, dataset: CocoDataset) -> None:
        dataset.require_objects()
        self._dataset = dataset
        self.paths, self.description = dataset.paths, dataset.description

    def sample(self, limit: int | None) -> LabeledBoxes:
        return LabeledBoxes(self._dataset.sample(limit))

    def record(self, place: int, photo: Image.Image, model: DenseModel) -> list[dict[str, Any]]:
        self._dataset.require_size(place, photo.size)
        return box_results(model.detect(photo), self._dataset.image_ids[place], self._dataset.category_ids)

    def evaluation(self, name: str, records: Sequence[Any], skipped: Sequence[ImageError]) -> DenseEvaluation:
        boxes = [box for record in records for box in record]
        readable = self._dataset.without(skipped)
        readable.require_objects()
        figures = mean_average_precisions(match(readable.dataset, boxes))
        return DenseEvaluation(
            name=name, images=len(records), figures=figures, details={"boxes": len(boxes)}, chance=_CHANCE_MAP
        )


class LabeledMasks(LabeledPhotos):
    """Photos with masks, for mIoU."""

    metric = "mIoU"

    def __init__(self, dataset: MaskDataset, class_count: int) -> None:
        self._dataset, self._class_count = dataset, class_count
        self.paths, self.description = tuple(image for image, _ in dataset.pairs), dataset.description

    def sample(self, limit: int | None) -> LabeledMasks:
        return LabeledMasks(self._dataset.sample(limit), self._class_count)

    def record(self, place: int, photo: Image.Image, model: DenseModel) -> Any:
        size = (photo.height, photo.width)
        true = self._dataset.read_mask(place, size, self._class_count)
        return count_pixels(model.segment(photo), true, self._class_count)

    def evaluation(self, name: str, records: Sequence[Any], skipped: Sequence[ImageError]) -> DenseEvaluation:
        counts = list(records)
        if not any(each.true.any() for each in counts):
            raise UsageError(f"no pixel of the {len(counts)} masks has a class: there is no mIoU")
        return DenseEvaluation(
            name=name,
            images=len(counts),
            figures=dict(zip((self.metric, "pixel accuracy"), mean_iou_and_accuracy(counts), strict=True)),
            details={"class_ious": class_ious(counts)},
            chance=1 / self._class_count,
            notes=self._ignored_notes(counts),
        )

    def _ignored_notes(self, counts: Sequence[PixelCounts]) -> tuple[str, ...]:
        """Return the fraction of the pixels that do not count, and whether they may be the foreground."""
        ignored, judged = sum(each.ignored for each in counts), sum(int(each.true.sum()) for each in counts)
        if not ignored:
            return ()
        zero_counts = not self._dataset.reduce_zero_label
        values = f"the value {IGNORED}" if zero_counts else f"the values 0 and {IGNORED}"
        notes = [f"{ignored / (ignored + judged):.1%} of the pixels of the masks have {values} and are ignored"]
        if zero_counts and not any(each.true[1:].any() for each in counts):
            notes.append(f"the masks have only the values 0 and {IGNORED}; if {IGNORED} is an object, save it as 1")
        return tuple(notes)


def labeled_photos(
    folder: Path, task: Task, *, classes: Sequence[str] | None, class_count: int, reduce_zero_label: bool = False
) -> LabeledPhotos:
    """Return the photos of a folder: in COCO's format for a detector, else images and masks. Raises UsageError."""
    if task == "detection":
        return LabeledBoxes(read_coco(folder, classes=classes, class_count=class_count))
    return LabeledMasks(find_masks(folder, reduce_zero_label=reduce_zero_label), class_count)


def evaluate_models(
    models: Mapping[str, DenseModel],
    photos: LabeledPhotos,
    *,
    strict: bool = False,
    on_progress: OnImages | None = None,
) -> tuple[tuple[DenseEvaluation, ...], list[ImageError]]:
    """Run all models on all photos; return their figures, and the errors of photos that cannot be read.

    Raises ImageError for the first of those if `strict`, or if none can be read.
    """
    records: dict[str, list[Any]] = {name: [] for name in models}
    skipped: list[ImageError] = []
    for place, path in enumerate(photos.paths):
        try:
            photo = read_image(path)
        except ImageError as error:
            skipped.append(error)
            if strict or len(skipped) == len(photos.paths):
                raise
        else:
            for name, model in models.items():
                records[name].append(photos.record(place, photo, model))
        if on_progress is not None:
            on_progress(place + 1, len(photos.paths))
    return tuple(photos.evaluation(name, found, skipped) for name, found in records.items()), skipped
