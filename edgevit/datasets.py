"""Labeled image folders: class subfolders or a labels file.

A class is given by the name of a folder or by a label in the file. It may be an index of the logits, written as a
number, a class name of the model, or an ImageNet synset such as n01440764 if the classes are those of ImageNet; they
are tried in this order. If no folder name is known, the sorted folders are the classes in order, as in torchvision's
ImageFolder, and the dataset's description says so.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from edgevit.errors import UsageError
from edgevit.files import first_line, os_reason
from edgevit.images import SUFFIXES, images_below, is_image
from edgevit.untrusted import InvalidError, read_limited

LABEL_FILES = tuple(f"{stem}.{suffix}" for stem in ("labels", "val") for suffix in ("txt", "csv", "tsv"))
# A path ends with its suffix, so that paths and class names may contain spaces, commas and quotes.
_LINE = re.compile(
    r'"?(?P<path>.+?\.(?:' + "|".join(suffix[1:] for suffix in sorted(SUFFIXES)) + r'))"?[\s,;]+"?(?P<label>.+?)"?',
    re.IGNORECASE,
)
_MAX_LABELS_BYTES = 256 << 20
MAX_CLASSES_BYTES = 16 << 20  # of a file of class names
_MAX_SHOWN = 60  # characters of a name that are repeated in an error message
_HEADER = re.compile(r"(path|file|file_?name|image)\s*[\s,;]\s*(label|class|target)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDataset:
    """Image files and the class of each, an index of the logits. `description` says how the classes were found."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_count: int
    description: str

    def sample(self, limit: int) -> ImageDataset:
        """Return at most `limit` images: every k-th in the order of the classes, so that proportions are kept."""
        total = len(self.labels)
        if limit < 1:
            raise UsageError(f"the number of images must be at least 1, not {limit}")
        if limit >= total:
            return self
        by_class = sorted(range(total), key=self.labels.__getitem__)
        kept = sorted(by_class[place * total // limit] for place in range(limit))
        return replace(
            self,
            paths=tuple(self.paths[index] for index in kept),
            labels=tuple(self.labels[index] for index in kept),
            description=f"{self.description}; {limit} of {total} images, every {total / limit:.3g}th by class",
        )


def find_dataset(folder: Path, *, classes: Sequence[str] | None, class_count: int) -> ImageDataset:
    """Return the labeled images of `folder` for a model with `class_count` logits named `classes`.

    Raises UsageError if there are none, if a folder or a line names an unknown or ambiguous class, and if there are
    both class folders and a labels file.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder of images at {folder}")
    if classes is not None and len(classes) != class_count:
        raise UsageError(f"the model has {class_count} logits but {len(classes)} class names; export it again")
    known = _Known.of(classes, class_count)
    folders = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    files = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    if not files:
        return _from_folders(folder, folders, known)
    if len(files) > 1:
        raise UsageError(f"found two labels files, {files[0]} and {files[1].name}; keep one of them")
    if matching := [place for place in folders if known.candidates(place.name)]:
        raise UsageError(
            f"{folder} has both class folders ({matching[0].name}) and {files[0].name}; "
            "move the file away, or the images out of the class folders"
        )
    return _from_file(files[0], known)


@dataclass(frozen=True, slots=True)
class _Known:
    """The names of the classes by kind, in the order in which they are tried."""

    class_count: int
    kinds: Mapping[str, Mapping[str, frozenset[int]]]  # kind -> normalized name -> classes

    @classmethod
    def of(cls, classes: Sequence[str] | None, class_count: int) -> _Known:
        if classes is None:
            return cls(class_count, {})
        synonyms = [(word, index) for index, name in enumerate(classes) for word in name.split(",")]
        return cls(
            class_count,
            {
                "class name": _indexed((name, index) for index, name in enumerate(classes)),
                "synonym": _indexed(synonyms),
                "ImageNet synset": _indexed(_synsets(classes)),
            },
        )

    def candidates(self, word: str) -> tuple[str, frozenset[int]] | None:
        """Return the kind of name that `word` is and its classes; None if it is unknown."""
        name = _normalized(word)
        if re.fullmatch("-?[0-9]{1,18}", word):  # before normalization, which would turn -1 into 1
            own = frozenset({int(word)} & set(range(self.class_count)))
            named = self.kinds.get("class name", {}).get(word, frozenset())  # a class name may be a number
            return ("number", own | named) if own | named else None
        for kind, names in self.kinds.items():
            if name in names:
                return kind, names[name]
        return None

    def find(self, word: str, place: str) -> tuple[str, int]:
        """Return the kind of name and the class. Raises UsageError, starting with `place`, unless it is one class."""
        found = self.candidates(word)
        if found is None:
            raise UsageError(f"{place}: {_shown(word)} is not a class of this model; use {self}")
        kind, indices = found
        if len(indices) > 1:
            both = " and ".join(str(index) for index in sorted(indices))
            raise UsageError(f"{place}: {_shown(word)} may be the classes {both}; write the index instead")
        return kind, min(indices)

    def __str__(self) -> str:
        kinds = "".join(f" or a {kind}" for kind, names in self.kinds.items() if names and kind != "synonym")
        return f"an index from 0 to {self.class_count - 1}{kinds}"


def _indexed(pairs: Iterable[tuple[str, int]]) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for word, index in pairs:
        found.setdefault(_normalized(word), set()).add(index)
    return {word: frozenset(indices) for word, indices in found.items()}


def _normalized(word: str) -> str:
    """Return a name with case, spaces, underscores, hyphens and composed accents unified."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", word)).strip().casefold()


def _synsets(classes: Sequence[str]) -> list[tuple[str, int]]:
    """Return the ImageNet-1k synsets with their indices; empty if `classes` are not those of ImageNet."""
    path = resources.files("edgevit") / "data" / "imagenet_classes.tsv"
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    if [name for _, name in rows] != list(classes):
        return []
    return [(synset, index) for index, (synset, _) in enumerate(rows)]


# Class folders


def _from_folders(folder: Path, folders: Sequence[Path], known: _Known) -> ImageDataset:
    images = {place: images_below(place) for place in folders}
    if not any(images.values()):
        raise UsageError(f"no image in a class folder of {folder}, and no labels file ({', '.join(LABEL_FILES)})")
    if loose := [path for path in sorted(folder.iterdir()) if is_image(path)]:
        raise UsageError(f"{loose[0]} is in no class folder; move it into one, or write {LABEL_FILES[0]}")
    labels, how = _folder_labels(folder, folders, known)
    return ImageDataset(
        paths=tuple(path for place in folders for path in images[place]),
        labels=tuple(labels[place] for place in folders for _ in images[place]),
        class_count=known.class_count,
        description=f"{sum(map(bool, images.values()))} of {known.class_count} classes have images, in {how}",
    )


def _folder_labels(folder: Path, folders: Sequence[Path], known: _Known) -> tuple[dict[Path, int], str]:
    if not any(known.candidates(place.name) for place in folders):
        return _sorted_labels(folder, folders, known)
    found = {place: known.find(place.name, str(place)) for place in folders}
    owners: dict[int, Path] = {}
    for place, (_, label) in found.items():
        if label in owners:
            raise UsageError(f"the folders {owners[label].name} and {place.name} are both class {label}; merge them")
        owners[label] = place
    kinds = dict.fromkeys(kind for kind, _ in found.values())
    return {place: label for place, (_, label) in found.items()}, f"folders named by {' and by '.join(kinds)}"


def _sorted_labels(folder: Path, folders: Sequence[Path], known: _Known) -> tuple[dict[Path, int], str]:
    """Label folders in sorted order. Folders of folders are rejected: `train` and `val` are not two classes."""
    nested = any(inner.is_dir() for place in folders for inner in place.iterdir())
    if nested or len(folders) != known.class_count:
        raise UsageError(
            f"{folders[0]}: no folder in {folder} is named after a class of this model; "
            f"rename them to {known}, or give the folder that contains the class folders"
        )
    labels = {place: index for index, place in enumerate(folders)}
    return labels, "folders of unknown names, in sorted order; check that this is the order of the model's classes"


# Labels file


def _from_file(file: Path, known: _Known) -> ImageDataset:
    found: dict[Path, tuple[int, int]] = {}  # path -> line, class
    for number, line in _lines(file):
        where = f"{file}, line {number}"
        path, label = _parse(line, where, file.parent)
        if path in found:
            raise UsageError(f"{where}: {path} is already in line {found[path][0]}; keep one of them")
        found[path] = (number, known.find(label, where)[1])
    if not found:
        raise UsageError(f"{file} has no labels; write one line per image: relative/path label")
    labels = tuple(label for _, label in found.values())
    return ImageDataset(
        paths=tuple(found),
        labels=labels,
        class_count=known.class_count,
        description=f"{len(set(labels))} of {known.class_count} classes have images, labeled in {file.name}",
    )


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return the lines that label an image, numbered from 1. Comments and a header line are skipped."""
    try:
        text = read_limited(file, limit_bytes=_MAX_LABELS_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {os_reason(error)}") from error
    except InvalidError as error:
        raise UsageError(f"cannot read {file}: it is {error}, too much for a list of labels") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {file}: {first_line(error)}; save it as UTF-8 text") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    return [
        (number, line)
        for number, line in lines
        if line and not line.startswith("#") and not (number == 1 and _HEADER.fullmatch(line))
    ]


def _parse(line: str, where: str, folder: Path) -> tuple[Path, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise UsageError(f"{where}: {_shown(line)} is not `relative/path label`, with the path of an image")
    path = Path(os.path.normpath(folder / match["path"]))
    if not path.is_file():
        raise UsageError(f"{where}: no image at {path}; paths are relative to {folder}")
    return path, match["label"]


def _shown(text: str) -> str:
    """Return `text` quoted for an error message, cut if it is long."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
