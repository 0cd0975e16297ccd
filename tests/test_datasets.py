"""Labeled image folders: every image gets the class of its folder or line, or the error names the place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from edgevit.datasets import ImageDataset, find_dataset
from edgevit.errors import UsageError
from edgevit.models.loading import class_names

PETS = ("cat", "great white shark", "tench, Tinca tinca", "Chihuahua")
IMAGENET = class_names("imagenet")


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    return path


def labeled(folder: Path, classes: tuple[str, ...] | None = PETS, count: int | None = None) -> dict[str, int]:
    """Return the class of each image by its path relative to `folder`."""
    found = find_dataset(folder, classes=classes, class_count=count or len(classes or ()))
    return {str(path.relative_to(folder)): label for path, label in zip(found.paths, found.labels, strict=True)}


def folders(folder: Path, *names: str) -> Path:
    for name in names:
        image(folder / name / "a.png")
    return folder


def labels(folder: Path, text: str, *, file: str = "labels.txt", images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    for name in images:
        image(folder / name)
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0", 0),
        ("0003", 3),
        ("cat", 0),
        ("CAT", 0),
        ("great_white_shark", 1),
        ("Great-White Shark", 1),
        ("tench", 2),
        ("tinca_tinca", 2),
        ("tench, Tinca tinca", 2),
        ("chihuahua", 3),
    ],
)
def test_a_folder_is_named_by_index_or_class_name(name: str, expected: int, tmp_path: Path) -> None:
    assert labeled(folders(tmp_path, name)) == {f"{name}/a.png": expected}


@pytest.mark.parametrize(("synset", "expected"), [("n01440764", 0), ("n02123045", 281), ("n15075141", 999)])
def test_synsets_are_known_for_imagenet_classes_only(synset: str, expected: int, tmp_path: Path) -> None:
    assert labeled(folders(tmp_path, synset), IMAGENET) == {f"{synset}/a.png": expected}
    with pytest.raises(UsageError, match=synset):
        labeled(tmp_path, IMAGENET[::-1])


def test_imagenet_has_two_cranes(tmp_path: Path) -> None:
    """The bird (134) and the machine (517) have the same name and different synsets."""
    with pytest.raises(UsageError, match="the classes 134 and 517"):
        labeled(folders(tmp_path / "names", "crane"), IMAGENET)
    assert set(labeled(folders(tmp_path / "synsets", "n02012849", "n03126707"), IMAGENET).values()) == {134, 517}


def test_a_class_name_may_be_a_number(tmp_path: Path) -> None:
    assert labeled(folders(tmp_path / "years", "1999"), ("1998", "1999")) == {"1999/a.png": 1}
    with pytest.raises(UsageError, match="'1' may be the classes 0 and 1"):
        labeled(folders(tmp_path / "digits", "1"), ("1", "0"))


def test_images_of_every_suffix_and_depth_are_found(tmp_path: Path) -> None:
    for name in ("cat/a.JPEG", "cat/deep/er/b.png", "3/c.bmp", ".hidden/d.png", "cat/._a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "cat" / "notes.md").write_text("no image")
    assert labeled(tmp_path) == {"3/c.bmp": 3, "cat/a.JPEG": 0, "cat/deep/er/b.png": 0}


def test_folders_of_unknown_names_are_taken_in_sorted_order_with_a_note(tmp_path: Path) -> None:
    names = ("delta", "alpha", "carol", "bravo")
    found = find_dataset(folders(tmp_path, *names), classes=PETS, class_count=4)
    assert [(path.parent.name, label) for path, label in zip(found.paths, found.labels, strict=True)] == [
        ("alpha", 0),
        ("bravo", 1),
        ("carol", 2),
        ("delta", 3),
    ]
    assert "sorted order" in found.description
    assert "sorted order" not in find_dataset(folders(tmp_path / "x", "cat"), classes=PETS, class_count=4).description


def wrong_folders(tmp_path: Path, case: str) -> Path:
    match case:
        case "an unknown folder":
            return folders(tmp_path, "cat", "dog")
        case "index out of range":
            return folders(tmp_path, "0", "4")
        case "too few unknown folders":
            return folders(tmp_path, "alpha", "bravo", "carol")
        case "splits instead of classes":
            return folders(tmp_path, "train/x", "val/x", "test/x", "more/x")
        case "two for one class":
            return folders(tmp_path, "cat", "0")
        case "loose image":
            return folders(image(tmp_path / "b.png").parent, "cat")
        case "no classes":
            return image(tmp_path / "a.png").parent
        case "empty class":
            (tmp_path / "cat").mkdir()
            return tmp_path
        case "nowhere":
            return tmp_path / "nowhere"
    return tmp_path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("an unknown folder", r"dog: 'dog' is not a class"),
        ("index out of range", r"4: '4' is not a class of this model; use an index from 0 to 3"),
        ("too few unknown folders", r"no folder .* is named after a class"),
        ("splits instead of classes", r"give the folder that contains the class folders"),
        ("two for one class", r"folders 0 and cat are both class 0"),
        ("loose image", r"b\.png is in no class folder"),
        ("no classes", r"no image in a class folder"),
        ("empty class", r"no image in a class folder"),
        ("empty folder", r"no image in a class folder"),
        ("nowhere", r"no folder of images"),
    ],
)
def test_an_error_names_the_wrong_folder(case: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        labeled(wrong_folders(tmp_path, case))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels.txt", "a.png 0\nb.png 2\n"),
        ("val.txt", "a.png 0\r\nb.png 2\r\n"),
        ("labels.txt", "\ufeffa.png\tcat\n# a comment\n\nb.png\ttench"),
        ("labels.csv", "path,label\na.png,cat\nb.png,tinca tinca\n"),
        ("labels.csv", 'file_name,class\n"a.png","Cat"\n"b.png","tench, Tinca tinca"\n'),
        ("labels.tsv", "a.png\t0\nb.png\t2\n"),
    ],
)
def test_a_labels_file_gives_the_classes(file: str, text: str, tmp_path: Path) -> None:
    assert labeled(labels(tmp_path, text, file=file)) == {"a.png": 0, "b.png": 2}


def test_paths_and_class_names_may_contain_spaces(tmp_path: Path) -> None:
    text = "val/my photo.png great white shark\nval/b.JPG.png 3\n"
    labels(tmp_path, text, images=("val/my photo.png", "val/b.JPG.png"))
    assert labeled(tmp_path) == {"val/my photo.png": 1, "val/b.JPG.png": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 0\nc.png 1", r"labels\.txt, line 2: no image at .*c\.png"),
        ("a.png 4", r"labels\.txt, line 1: '4' is not a class"),
        ("a.png -1", r"labels\.txt, line 1: '-1' is not a class"),
        ("a.png dog", r"labels\.txt, line 1: 'dog' is not a class"),
        ("a.png 0\n\nb.png 1\n./a.png 0", r"labels\.txt, line 4: .*a\.png is already in line 1"),
        ("a.png 0\nb.png", r"labels\.txt, line 2: 'b\.png' is not `relative/path label`"),
        ("a.png 0\npath label", r"labels\.txt, line 2: 'path label' is not"),
        ("", r"has no labels"),
        ("path,label\n", r"has no labels"),
    ],
)
def test_an_error_names_the_wrong_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        labeled(labels(tmp_path, text))


def test_a_labels_file_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="UTF-8"):
        labeled(tmp_path)


def test_class_folders_and_a_labels_file_are_a_usage_error(tmp_path: Path) -> None:
    labels(tmp_path, "val/a.png 3", images=("val/a.png",))
    assert labeled(tmp_path) == {"val/a.png": 3}  # `val` is not a class
    folders(tmp_path, "cat")
    with pytest.raises(UsageError, match=re.escape("both class folders (cat)") + r".*labels\.txt"):
        labeled(tmp_path)


def test_two_labels_files_are_a_usage_error(tmp_path: Path) -> None:
    labels(labels(tmp_path, "a.png 0"), "a.png 1", file="val.txt")
    with pytest.raises(UsageError, match="two labels files"):
        labeled(tmp_path)


def test_a_huge_number_is_not_a_class_and_is_not_repeated_whole(tmp_path: Path) -> None:
    """int() raises ValueError for so many digits."""
    with pytest.raises(UsageError, match=r"line 1: '9{60}\.\.\.' is not a class of this model"):
        labeled(labels(tmp_path, f"a.png {'9' * 5000}"))


def test_a_model_without_class_names_accepts_indices_only(tmp_path: Path) -> None:
    assert labeled(folders(tmp_path, "2", "0"), None, 3) == {"0/a.png": 0, "2/a.png": 2}
    folders(tmp_path, "cat")
    with pytest.raises(UsageError, match="'cat' is not a class of this model; use an index from 0 to 2$"):
        labeled(tmp_path, None, 3)


def test_a_wrong_number_of_class_names_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="10 logits but 4 class names"):
        labeled(folders(tmp_path, "cat"), PETS, 10)


def many(counts: dict[int, int]) -> ImageDataset:
    found = [label for label, count in counts.items() for _ in range(count)]
    paths = tuple(Path(f"{index}.png") for index in range(len(found)))
    return ImageDataset(paths=paths, labels=tuple(found), class_count=3, description="so")


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ({0: 10, 1: 10, 2: 10}, 6, {0: 2, 1: 2, 2: 2}),
        ({2: 30, 0: 60, 1: 10}, 10, {0: 6, 1: 1, 2: 3}),
        ({0: 3, 1: 3, 2: 3}, 3, {0: 1, 1: 1, 2: 1}),
        ({0: 2, 1: 2, 2: 3}, 99, {0: 2, 1: 2, 2: 3}),
    ],
)
def test_a_limit_keeps_class_proportions(counts: dict[int, int], limit: int, expected: dict[int, int]) -> None:
    images = many(counts)
    kept = images.sample(limit)
    assert {label: kept.labels.count(label) for label in (0, 1, 2)} == expected
    assert kept == images.sample(limit)
    own = dict(zip(images.paths, images.labels, strict=True))
    assert all(own[path] == label for path, label in zip(kept.paths, kept.labels, strict=True))
    assert (f"{limit} of {len(images.labels)} images" in kept.description) == (limit < len(images.labels))


def test_a_limit_of_0_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        many({0: 3}).sample(0)
