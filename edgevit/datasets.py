"""Images whose classes are known: a subfolder a class, or a file of labels beside the images.

What stands for a class (a folder's name, a label in a file) is looked up in this order: an index of the logits, written
as a number; a class name of the model; an ImageNet synset such as n01440764, where the classes are ImageNet's. Only
folders of which none is known are taken in sorted order, as torchvision's ImageFolder takes them, and `how` says so.
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
from edgevit.images import SUFFIXES, images_below, is_image

LABEL_FILES = tuple(f"{stem}.{suffix}" for stem in ("labels", "val") for suffix in ("txt", "csv", "tsv"))
# A path ends with its suffix, so that both paths and class names may hold spaces, commas and quotes.
_LINE = re.compile(
    r'"?(?P<path>.+?\.(?:' + "|".join(suffix[1:] for suffix in sorted(SUFFIXES)) + r'))"?[\s,;]+"?(?P<label>.+?)"?',
    re.IGNORECASE,
)
_HEADER = re.compile(r"(path|file|file_?name|image)\s*[\s,;]\s*(label|class|target)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Image files, the class of each as an index of the logits, and how that was found."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_count: int
    how: str

    def spread(self, limit: int) -> LabelledImages:
        """At most `limit` images: every k-th in the order of the classes, so that each keeps its share."""
        total = len(self.labels)
        if limit < 1:
            raise UsageError(f"accuracy is measured on at least one image, not {limit}")
        if limit >= total:
            return self
        by_class = sorted(range(total), key=self.labels.__getitem__)
        kept = sorted(by_class[place * total // limit] for place in range(limit))
        return replace(
            self,
            paths=tuple(self.paths[index] for index in kept),
            labels=tuple(self.labels[index] for index in kept),
            how=f"{self.how}; {limit} of {total} images, one in {total / limit:.3g} in the order of the classes",
        )


def find_labelled(folder: Path, *, classes: Sequence[str] | None, class_count: int) -> LabelledImages:
    """The images of `folder` with their classes, for a model that answers `class_count` logits named `classes`.

    Raises UsageError where there are none, where a folder or a line names no class or two, and where folders and a
    file of labels contradict each other.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder of images at {folder}")
    if classes is not None and len(classes) != class_count:
        raise UsageError(f"the model answers {class_count} classes and names {len(classes)}; export it again")
    known = _Known.of(classes, class_count)
    folders = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    files = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    if not files:
        return _from_folders(folder, folders, known)
    if len(files) > 1:
        raise UsageError(f"{files[0]} and {files[1].name} both label the images; keep one of them")
    if matching := [place for place in folders if known.candidates(place.name)]:
        raise UsageError(
            f"{folder} has both class folders ({matching[0].name}) and {files[0].name}; "
            "move the file away, or the images out of the class folders"
        )
    return _from_file(files[0], known)


@dataclass(frozen=True, slots=True)
class _Known:
    """What may stand for a class: every kind of name, in the order in which they are tried."""

    class_count: int
    kinds: Mapping[str, Mapping[str, frozenset[int]]]  # kind -> plain name -> classes

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
        """How `word` is known, and the classes that it may stand for; None where it is not known."""
        plain = _plain(word)
        if re.fullmatch("-?[0-9]{1,18}", word):  # as it is written: hyphens are spaces in names, and -1 is not 1
            own = frozenset({int(word)} & set(range(self.class_count)))
            named = self.kinds.get("class name", {}).get(word, frozenset())  # a class may be called by a number
            return ("number", own | named) if own | named else None
        for kind, names in self.kinds.items():
            if plain in names:
                return kind, names[plain]
        return None

    def find(self, word: str, place: str) -> tuple[str, int]:
        """How `word` is known, and its class. Raises UsageError, with `place` before it, for none and for several."""
        found = self.candidates(word)
        if found is None:
            raise UsageError(f"{place}: {word!r} is no class of this model: {self}")
        kind, indices = found
        if len(indices) > 1:
            both = " and ".join(str(index) for index in sorted(indices))
            raise UsageError(f"{place}: {word!r} may be the classes {both}; write the number that is meant")
        return kind, min(indices)

    def __str__(self) -> str:
        kinds = "".join(f", {kind}" for kind, names in self.kinds.items() if names and kind != "synonym")
        return f"it takes an index from 0 to {self.class_count - 1}{kinds}"


def _indexed(pairs: Iterable[tuple[str, int]]) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for word, index in pairs:
        found.setdefault(_plain(word), set()).add(index)
    return {word: frozenset(indices) for word, indices in found.items()}


def _plain(word: str) -> str:
    """A name without what file systems and people write differently: case, spaces, underscores, hyphens, accents."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", word)).strip().casefold()


def _synsets(classes: Sequence[str]) -> list[tuple[str, int]]:
    """The synsets of ImageNet-1k in the order of the logits; none where these are other classes."""
    path = resources.files("edgevit") / "data" / "imagenet_classes.tsv"
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    if [name for _, name in rows] != list(classes):
        return []
    return [(synset, index) for index, (synset, _) in enumerate(rows)]


# A subfolder a class


def _from_folders(folder: Path, folders: Sequence[Path], known: _Known) -> LabelledImages:
    images = {place: images_below(place) for place in folders}
    if not any(images.values()):
        raise UsageError(f"no image in a class folder of {folder}, and none of {', '.join(LABEL_FILES)}")
    if loose := [path for path in sorted(folder.iterdir()) if is_image(path)]:
        raise UsageError(f"{loose[0]} lies in no class folder; move it into one, or write {LABEL_FILES[0]}")
    labels, how = _folder_labels(folder, folders, known)
    return LabelledImages(
        paths=tuple(path for place in folders for path in images[place]),
        labels=tuple(labels[place] for place in folders for _ in images[place]),
        class_count=known.class_count,
        how=f"{sum(map(bool, images.values()))} of {known.class_count} classes have images, in {how}",
    )


def _folder_labels(folder: Path, folders: Sequence[Path], known: _Known) -> tuple[dict[Path, int], str]:
    if not any(known.candidates(place.name) for place in folders):
        return _sorted_labels(folder, folders, known)
    found = {place: known.find(place.name, str(place)) for place in folders}
    owners: dict[int, Path] = {}
    for place, (_, label) in found.items():
        if label in owners:
            raise UsageError(f"the folders {owners[label].name} and {place.name} are both class {label}; join them")
        owners[label] = place
    kinds = dict.fromkeys(kind for kind, _ in found.values())
    return {place: label for place, (_, label) in found.items()}, f"folders known by {' and by '.join(kinds)}"


def _sorted_labels(folder: Path, folders: Sequence[Path], known: _Known) -> tuple[dict[Path, int], str]:
    """The last resort. Folders that hold folders are no classes: `train` and `val` are not those of a model of two."""
    nested = any(inner.is_dir() for place in folders for inner in place.iterdir())
    if nested or len(folders) != known.class_count:
        raise UsageError(
            f"{folders[0]}: no folder in {folder} is named after a class of this model: {known}; "
            "rename them, or name the folder that holds the class folders"
        )
    labels = {place: index for index, place in enumerate(folders)}
    return labels, "folders whose names are no class, taken in sorted order: make sure that it is the model's"


# A file of labels


def _from_file(file: Path, known: _Known) -> LabelledImages:
    found: dict[Path, tuple[int, int]] = {}  # path -> line, class
    for number, line in _lines(file):
        where = f"{file}, line {number}"
        path, label = _parse(line, where, file.parent)
        if path in found:
            raise UsageError(f"{where}: {path} stands in line {found[path][0]} already; keep one of them")
        found[path] = (number, known.find(label, where)[1])
    if not found:
        raise UsageError(f"{file} labels no image; write a line an image: relative/path label")
    labels = tuple(label for _, label in found.values())
    return LabelledImages(
        paths=tuple(found),
        labels=labels,
        class_count=known.class_count,
        how=f"{len(set(labels))} of {known.class_count} classes have images, by {file.name}",
    )


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines that label an image, numbered from 1; a first line that only names the columns is none."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}; write it as UTF-8 text") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    return [
        (number, line)
        for number, line in lines
        if line and not line.startswith("#") and not (number == 1 and _HEADER.fullmatch(line))
    ]


def _parse(line: str, where: str, folder: Path) -> tuple[Path, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise UsageError(f"{where}: {line!r} is not `relative/path label`, with the path of an image")
    path = Path(os.path.normpath(folder / match["path"]))
    if not path.is_file():
        raise UsageError(f"{where}: no image at {path}; paths are relative to {folder}")
    return path, match["label"]
