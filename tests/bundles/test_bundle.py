"""Bundles are opened only if every file is the one that was exported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgevit
from edgevit.bundles.bundle import Bundle, display_names, model_file
from edgevit.bundles.engine import open_engine
from edgevit.cli.main import main
from edgevit.errors import BuildError, BundleError, UsageError
from edgevit.files import file_sha256
from tests.helpers.bundles import damage, manifest_json, write_manifest_json


@pytest.fixture
def own_ort(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> Bundle:
    """A copy to damage."""
    return Bundle.open(shutil.copytree(shared_bundle("ort").path, tmp_path / "own"))


def test_a_copy_works_in_another_folder(own_bundle: Bundle) -> None:
    with edgevit.load(own_bundle.path) as engine:
        assert engine.inputs[0].name == "images"


def test_a_changed_byte_in_any_file_is_noticed(own_bundle: Bundle) -> None:
    for file in own_bundle.manifest.files:
        path = own_bundle.path / file.path
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(BundleError, match=path.name):
            edgevit.load(own_bundle)
        path.write_bytes(content)
    edgevit.load(own_bundle).close()


def test_missing_and_truncated_files_are_noticed(own_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    for file in own_bundle.manifest.files:
        path = own_bundle.path / file.path
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert "not the file that was exported" in _refusal(own_bundle, capsys)
        path.unlink()
        assert f"lacks {file.path}" in _refusal(own_bundle, capsys)
        path.write_bytes(content)
    assert main(["verify", str(own_bundle.path)]) == 0


def test_a_file_of_the_right_size_is_not_blamed_for_its_size(own_ort: Bundle) -> None:
    """It had 5075516 bytes, expected 5075516."""
    path = own_ort.path / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="its contents differ: it has another SHA-256; copy") as caught:
        Bundle.open(own_ort.path)
    assert "bytes" not in str(caught.value)
    path.write_bytes(content + b"more")
    with pytest.raises(BundleError, match=f"it has {len(content) + 4} bytes, expected {len(content)}; copy") as caught:
        Bundle.open(own_ort.path)
    assert "SHA-256" not in str(caught.value)


def test_a_changed_hash_in_the_manifest_is_noticed(own_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    damage(own_bundle.path, "files.0.sha256", "0" * 64)
    assert "another SHA-256" in _refusal(own_bundle, capsys)


def _refusal(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `verify` prints on refusing a bundle with status 2."""
    assert main(["verify", str(bundle.path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "classes.txt"])
def test_a_file_without_a_hash_is_not_opened(name: str, own_ort: Bundle) -> None:
    _drop_hash(own_ort, name)
    (own_ort.path / name).write_bytes(b"another file")
    with pytest.raises(BundleError, match=f"no hash of {re.escape(name)}"):
        Bundle.open(own_ort.path)


def test_a_manifest_without_any_hash_is_refused(own_bundle: Bundle) -> None:
    damage(own_bundle.path, "files", [])
    with pytest.raises(BundleError, match="no hash of"):
        Bundle.open(own_bundle.path)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_every_file_of_an_engine_needs_a_hash(
    name: str, shared_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    own = Bundle.open(shutil.copytree(shared_bundle("openvino").path, tmp_path / "own"))
    _drop_hash(own, name)
    with pytest.raises(BundleError, match=f"no hash of {re.escape(name)}"):
        Bundle.open(own.path)


def _drop_hash(bundle: Bundle, name: str) -> None:
    files = tuple(file for file in bundle.manifest.files if file.path != name)
    write_manifest_json(bundle.path, replace(bundle.manifest, files=files).to_json())


@pytest.mark.parametrize("way", ["beside", "absolute", "hashed"])
def test_an_engine_outside_of_its_bundle_is_refused(way: str, own_ort: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own_ort.path, tmp_path / "other")) / "model.onnx"
    path = str(other) if way == "absolute" else "../other/model.onnx"
    damage(own_ort.path, "runtime.engine_files", [path])
    if way == "hashed":
        files = manifest_json(own_ort.path)["files"]
        (entry,) = (entry for entry in files if entry["path"] == "model.onnx")
        damage(own_ort.path, "files", [*files, {**entry, "path": path}])
    with pytest.raises(
        BundleError, match="outside of the bundle" if way == "hashed" else f"no hash of {re.escape(path)}"
    ):
        edgevit.load(own_ort)


def test_a_link_in_a_bundle_does_not_lead_out_of_it(own_ort: Bundle, tmp_path: Path) -> None:
    shutil.move(own_ort.path / "model.onnx", tmp_path / "elsewhere.onnx")
    (own_ort.path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="outside of the bundle"):
        Bundle.open(own_ort.path)


def test_a_manifest_cannot_list_files_outside_of_its_folder(own_bundle: Bundle) -> None:
    files = manifest_json(own_bundle.path)["files"]
    damage(own_bundle.path, "files", [*files, {"path": "../../etc/passwd", "size_bytes": 1, "sha256": ""}])
    with pytest.raises(BundleError, match="outside of the bundle"):
        edgevit.load(own_bundle)


def test_a_bundle_without_an_engine_opens_and_so_does_one_with_more_files(own_ort: Bundle) -> None:
    damage(own_ort.path, "runtime.engine_files", [])
    (own_ort.path / "notes.txt").write_text("mine")
    assert Bundle.open(own_ort.path).engine_path is None


def test_a_folder_that_is_missing_or_empty_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        edgevit.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is not a bundle"):
        edgevit.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="no bundle at"):
        edgevit.load(tmp_path / "file")


def test_an_engine_truncated_after_the_check_does_not_load(own_bundle: Bundle) -> None:
    """The hash is the first guard; the runtime's own loading is the second."""
    engine = own_bundle.engine_path
    assert engine is not None
    engine.write_bytes(engine.read_bytes()[:1000])
    with pytest.raises(BuildError, match="cannot load"):
        open_engine(own_bundle)


def test_bundles_of_the_same_name_are_displayed_with_as_much_of_their_path_as_it_takes(
    own_ort: Bundle, shared_bundle: Callable[[str], Bundle]
) -> None:
    other = Bundle(own_ort.path / "nested" / "own", own_ort.manifest)
    names = [str(Path(*bundle.path.parts[-2:])) for bundle in (own_ort, other)]
    assert display_names([own_ort, other]) == names  # a report is passed on
    assert display_names([own_ort, shared_bundle("ort")]) == ["own", shared_bundle("ort").name]


def test_the_onnx_file_of_a_bundle_is_found(own_ort: Bundle, tmp_path: Path) -> None:
    assert model_file(own_ort.path) == own_ort.path / "model.onnx"
    assert model_file(own_ort.model_path) == own_ort.model_path
    with pytest.raises(UsageError, match="no ONNX file and no bundle at"):
        model_file(tmp_path / "nowhere")


def test_a_bundle_that_is_replaced_while_its_files_are_read_is_read_again(
    own_ort: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that cannot exchange folders, there is none for a moment."""
    versions, missed = iter(range(1_000_000)), list[Path]()

    def missing_once(path: Path) -> str:
        if not missed:
            missed.append(path)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return file_sha256(path)

    monkeypatch.setattr("edgevit.bundles.bundle.file_sha256", missing_once)
    with pytest.raises(BundleError, match="cannot read .*: No such file or directory"):
        Bundle.open(own_ort.path)
    missed.clear()
    monkeypatch.setattr("edgevit.bundles.store.version", lambda _: next(versions))
    assert Bundle.open(own_ort.path).name == own_ort.name
