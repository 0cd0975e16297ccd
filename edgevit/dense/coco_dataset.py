"""A folder of images with one annotation file in COCO's format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from edgevit.dense.sampling import described, spread
from edgevit.errors import ImageError, UsageError
from edgevit.files import os_reason
from edgevit.untrusted import InvalidError, JsonObject, integer, list_of, nullable, number, read_json, shorten, text

_MAX_ANNOTATION_BYTES = 1 << 30
_MAX_ENTRIES = 10_000_000
_FOLDERS = ("", "images", "val2017", "train2017", "val", "train")
_MAX_COORDINATE = 1e6


@dataclass(frozen=True, slots=True)
class _Image:
    """An entry of the list of images. Its size is width and height in pixels; None if the file does not say."""

    id: int
    name: str
    size: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoDataset:
    """Images with their boxes. `dataset` is in COCO's form; `category_ids` has the id of each class of the model."""

    paths: tuple[Path, ...]
    image_ids: tuple[int, ...]
    sizes: tuple[tuple[float, float] | None, ...]  # width and height of each image, as far as the file has them
    dataset: dict[str, Any]
    category_ids: dict[int, int]
    description: str

    def sample(self, limit: int | None) -> CocoDataset:
        """Return every k-th image, at most `limit`."""
        places = spread(len(self.paths), limit)
        sample = self._only(places)
        return replace(sample, description=described(self.description, len(places), len(self.paths)))

    def without(self, unreadable: Sequence[ImageError]) -> CocoDataset:
        """Return the dataset without the images that could not be read."""
        left_out = {error.path for error in unreadable}
        return self._only([place for place, path in enumerate(self.paths) if path not in left_out])

    def require_size(self, place: int, size: tuple[int, int]) -> None:
        """Raise UsageError if an image, upright, has another width and height than its boxes are for."""
        stated = self.sizes[place]
        if stated is None or stated == size:
            return
        remedy = (
            "its boxes may be for the photo before its EXIF rotation; save it as it is labeled, without EXIF"
            if stated == size[::-1]
            else "give the photos that were labeled"
        )
        raise UsageError(
            f"{self.paths[place]} has {size[0]}x{size[1]} pixels, in the annotation file {stated[0]:g}x{stated[1]:g}; "
            f"{remedy}"
        )

    def require_objects(self) -> None:
        """Raise UsageError if no box counts: mAP is then not defined."""
        classes = set(self.category_ids.values())
        if not any(each["category_id"] in classes and not each["iscrowd"] for each in self.dataset["annotations"]):
            raise UsageError(
                f"none of the {len(self.paths)} images has a box of a class of the model, crowds aside: there is no mAP"
            )

    def _only(self, places: Sequence[int]) -> CocoDataset:
        ids = [self.image_ids[place] for place in places]
        kept = set(ids)
        dataset = {
            **self.dataset,
            "images": [{"id": each} for each in ids],
            "annotations": [each for each in self.dataset["annotations"] if each["image_id"] in kept],
        }
        return replace(
            self,
            paths=tuple(self.paths[place] for place in places),
            image_ids=tuple(ids),
            sizes=tuple(self.sizes[place] for place in places),
            dataset=dataset,
        )


def read_coco(folder: Path, *, classes: Sequence[str] | None, class_count: int) -> CocoDataset:
    """Read the one annotation file of `folder`, or of its subfolder `annotations`, for a model with these classes.

    Categories are found by name, or by their order if there are as many as classes and no name is known. Raises
    UsageError for anything else.
    """
    file = _annotation_file(folder)
    try:
        fields = JsonObject.of(read_json(file, limit_bytes=_MAX_ANNOTATION_BYTES))
        images = fields.read("images", list_of(_parse_image, most=_MAX_ENTRIES))
        categories = fields.read("categories", list_of(_parse_category, most=100_000))
        annotations = fields.read("annotations", list_of(_parse_annotation, most=_MAX_ENTRIES))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {os_reason(error)}") from error
    except InvalidError as error:
        raise UsageError(f"{file} is not COCO's format: {error}") from error
    if not images:
        raise UsageError(f"{file} lists no images")
    _require_distinct("image id", [each.id for each in images], file)
    _require_distinct("category id", [each for each, _ in categories], file)
    boxes = _of_listed_images(annotations, images, categories, file)
    left_out = len(annotations) - len(boxes)
    folders = [place for name in _FOLDERS if (place := folder / name).is_dir()]
    paths = tuple(_find(folders, each.name, file) for each in images)
    ids, how = _category_ids(dict(categories), classes, class_count, file)
    dataset = {
        "images": [{"id": each.id} for each in images],
        "categories": [{"id": each} for each, _ in categories],
        "annotations": [{**each, "id": place} for place, each in enumerate(boxes, 1)],
    }
    return CocoDataset(
        paths=paths,
        image_ids=tuple(each.id for each in images),
        sizes=tuple(each.size for each in images),
        dataset=dataset,
        category_ids=ids,
        description=f"{len(boxes)} boxes of {len(categories)} categories in {file.name}, {how}"
        + (f"; {left_out} boxes of images that it does not list" if left_out else ""),
    )


def _of_listed_images(
    annotations: Sequence[dict[str, Any]],
    images: Sequence[_Image],
    categories: Sequence[tuple[int, str]],
    file: Path,
) -> list[dict[str, Any]]:
    """Return the annotations of the file's images. Raises UsageError if one has a category that the file lacks."""
    unknown = {each["category_id"] for each in annotations} - {each for each, _ in categories}
    if unknown:
        raise UsageError(f"{file} has boxes of the category id {min(unknown)}, which it does not list")
    listed = {each.id for each in images}
    return [each for each in annotations if each["image_id"] in listed]


def _require_distinct(what: str, values: Sequence[int | str], file: Path) -> None:
    value, count = Counter(values).most_common(1)[0] if values else ("", 0)
    if count > 1:
        raise UsageError(f"{file} has the {what} {value} {count} times; it has to be there once")


def _folded(name: str) -> str:
    return name.strip().casefold()


def _annotation_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"no folder of images at {folder}")
    places = [folder, folder / "annotations"]
    files = sorted(path for place in places if place.is_dir() for path in place.glob("*.json"))
    if len(files) != 1:
        found = f"found {', '.join(path.name for path in files[:4])}" if files else "found none"
        raise UsageError(f"{folder} needs one annotation file in COCO's format, annotations.json; {found}")
    return files[0]


def _parse_image(value: Any, place: str) -> _Image:
    fields = JsonObject.of(value, place)
    pixels = nullable(number(0, _MAX_COORDINATE))
    width, height = (fields.read_or(side, pixels, None) for side in ("width", "height"))
    return _Image(
        id=fields.read("id", integer()),
        name=fields.read("file_name", text()),
        size=(width, height) if width and height else None,
    )


def _parse_category(value: Any, place: str) -> tuple[int, str]:
    fields = JsonObject.of(value, place)
    return fields.read("id", integer()), fields.read("name", text())


def _parse_annotation(value: Any, place: str) -> dict[str, Any]:
    fields = JsonObject.of(value, place)
    box = fields.read("bbox", list_of(number(-_MAX_COORDINATE, _MAX_COORDINATE), least=4, most=4))
    if min(box[2:]) < 0:
        raise InvalidError(f"{place}.bbox is {shorten(list(box))}, expected x, y, width and height of at least 0")
    return {
        "image_id": fields.read("image_id", integer()),
        "category_id": fields.read("category_id", integer()),
        "bbox": list(box),
        "area": fields.read_or("area", number(0, _MAX_COORDINATE**2), box[2] * box[3]),
        "iscrowd": fields.read_or("iscrowd", integer(0, 1), 0),
    }


def _find(folders: Sequence[Path], name: str, file: Path) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UsageError(f"{file} names an image outside of its folder: {name}")
    path = next((place / relative for place in folders if (place / relative).is_file()), None)
    if path is None:
        raise UsageError(f"{file} names the image {name}, which is not in {', '.join(map(str, folders))}")
    return path


def _category_ids(
    categories: Mapping[int, str], classes: Sequence[str] | None, class_count: int, file: Path
) -> tuple[dict[int, int], str]:
    """Return the category of each class, and how they were found."""
    by_name = {_folded(name): each for each, name in categories.items()}
    known = [(index, by_name.get(_folded(name))) for index, name in enumerate(classes or ())]
    named = {index: each for index, each in known if each is not None}
    if named:
        names = {_folded(name) for name in classes or ()}
        _require_distinct("category", [each for each in map(_folded, categories.values()) if each in names], file)
        missing = len(categories) - len(set(named.values()))
        return _with_unused(named, categories, class_count), "found by name" + (
            f"; {missing} are not classes of the model and counted as 0" if missing else ""
        )
    if len(categories) == class_count:
        return dict(enumerate(sorted(categories))), "in the order of their ids; check that it is that of the classes"
    raise UsageError(
        f"{file} has {len(categories)} categories, none named like a class of the model, which has {class_count}; "
        "rename the categories"
    )


def _with_unused(named: dict[int, int], categories: Mapping[int, str], class_count: int) -> dict[int, int]:
    """Give classes without a category ids that no object has."""
    free = max(categories) + 1
    return {index: named.get(index, free + index) for index in range(class_count)}
