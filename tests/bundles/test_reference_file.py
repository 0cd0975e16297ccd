"""reference.npz may come from anyone: whatever it holds, it is read as written or refused in one line."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.reference_file import read_references
from edgevit.bundles.store import write_manifest, write_references
from edgevit.errors import BundleError
from edgevit.types import Array, Reference
from tests.helpers.bundles import sample_manifest

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
GOOD: Mapping[str, Array] = {"photos/input/x": ROWS, "photos/output/a/b": ROWS[:, :2]}


def npz(path: Path, arrays: Mapping[str, Array]) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_written_references_are_read_back(tmp_path: Path) -> None:
    written = [
        Reference(
            kind="photos",
            inputs={"x": ROWS, "n/1": np.asfortranarray(ROWS)},
            outputs={"y": ROWS.astype(">i8")},
            float32_error={"y": 2.5e-6},
        ),
        Reference(kind="noise", inputs={"x": ROWS[:1], "n/1": ROWS[:1] > 1}, outputs={"y": np.zeros((1, 0))}),
    ]
    write_references(tmp_path / "r.npz", written)
    for reference, expected in zip(read_references(tmp_path / "r.npz"), written, strict=True):
        assert reference.kind == expected.kind
        assert reference.float32_error == expected.float32_error
        for found, wanted in ((reference.inputs, expected.inputs), (reference.outputs, expected.outputs)):
            assert list(found) == list(wanted)
            for name, array in wanted.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)
                found[name][:] = 0  # belongs to the caller


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"x": ROWS},
        {"photos/x": ROWS},
        {"photos/input/x": ROWS},
        {"photos/input/x": ROWS, "photos/output/": ROWS},
        {"photos/input/x": ROWS, "photos/else/y": ROWS},
        {"/input/x": ROWS, "/output/y": ROWS},
        {"photos/input/x": ROWS, "photos/output/y": ROWS[:1]},
        {"photos/input/x": ROWS[:0], "photos/output/y": ROWS[:0]},
        {"photos/input/x": ROWS, "photos/output/y": np.float32(1)},
        {"photos/input/x": ROWS, "photos/output/y": np.array([{}, []], object)},
        {"photos/input/x": ROWS, "photos/output/y": np.array(["a", "b"])},
        {"photos/input/x": ROWS, "photos/output/y": np.zeros(2, [("a", "f4")])},
        {"photos/input/x": ROWS, "photos/output/y": np.zeros(2, "M8[s]")},
        {"photos/input/x": ROWS, "photos/output/y": np.zeros(2, "c8")},
        {**GOOD, "photos/float32_error/y": ROWS[:1]},
        {**GOOD, "photos/float32_error/y": np.float64(-1)},
        {**GOOD, "photos/float32_error/y": np.float64(np.inf)},
        {**GOOD, "photos/float32_error/y": np.float64(np.nan)},
    ],
)  # fmt: skip
def test_arrays_other_than_references_are_refused(arrays: Mapping[str, Array], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"r\.npz is damaged: .*; export the bundle again$"):
        read_references(npz(tmp_path / "r.npz", arrays))


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(ROWS)[:-1],
        npy(ROWS) + b"x",
        header("(4611686018427387904, 2)"),
        header("(-1,)"),
        header("(2**99,)"),
        header("(" * 500),
        b"\x93NUMPY\x09\x00" + npy(ROWS)[8:],
    ],
)
def test_damaged_members_are_refused(content: bytes, tmp_path: Path) -> None:
    path = zipped(tmp_path / "r.npz", {"photos/input/x.npy": npy(ROWS), "photos/output/y.npy": content})
    with pytest.raises(BundleError, match="is damaged: "):
        read_references(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "r.npz", GOOD)
    content = bytearray(path.read_bytes())
    for signature, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        content[start + flag] |= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is damaged: .*encrypted"):
        read_references(path)


def test_random_damage_ends_in_one_line(tmp_path: Path) -> None:
    path, random = tmp_path / "r.npz", Random(0)
    good = npz(path, GOOD).read_bytes()
    for _ in range(500):
        content = bytearray(good)
        for _ in range(random.randint(1, 8)):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content[: random.randint(0, len(content))] if random.random() < 0.3 else content)
        try:
            read_references(path)
        except BundleError as error:
            assert "\n" not in str(error)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "classes.txt"])
@pytest.mark.parametrize("make", [make_fifo, link_to_device, link_to_itself, Path.mkdir])
def test_files_that_are_not_regular_are_refused_at_once(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for each in ("model.onnx", "reference.npz", "classes.txt"):
        (bundle / each).write_text("x")
    write_manifest(bundle, sample_manifest())
    Bundle.open(bundle)
    (bundle / name).unlink()
    make(bundle / name)
    with pytest.raises(BundleError) as raised:
        Bundle.open(bundle)
    assert "\n" not in str(raised.value)
    if name != "model.onnx":  # and if it changes after the check
        with pytest.raises(BundleError, match="cannot read "):
            _ = read_references(bundle / name) if name == "reference.npz" else Bundle(bundle, sample_manifest()).classes


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "is damaged"), (b"one\n", "has 1 names for 2 classes"), (b"a\nb\nc\n", "has 3 names for 2 classes")],
)
def test_a_wrong_list_of_class_names_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        _ = Bundle(tmp_path, sample_manifest()).classes
