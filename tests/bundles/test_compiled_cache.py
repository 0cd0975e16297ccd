"""A compiled model is used again, but never one of other files, of another machine, or a damaged one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.bundles import compiled_cache
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import open_engine
from edgevit.bundles.manifest import Manifest
from edgevit.errors import BuildError
from edgevit.latency.environment import Environment
from tests.helpers.file_limits import files_up_to

FEEDS = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}


@pytest.fixture(scope="module")
def bundle(shared_bundle: Callable[[str], Bundle]) -> Bundle:
    return shared_bundle("openvino")


def compiled(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.blob"))


def answer(bundle: Bundle, cache: Path | None = None) -> np.ndarray:
    with open_engine(bundle, threads=1, cache_dir=cache) as engine:
        return np.asarray(engine.run(FEEDS)["logits"])


def test_a_damaged_model_is_compiled_again(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = answer(bundle, tmp_path)
    (blob,) = compiled(tmp_path)
    written = blob.stat().st_mtime_ns
    assert np.array_equal(answer(bundle, tmp_path), expected)
    assert blob.stat().st_mtime_ns == written  # used as it is
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(answer(bundle, tmp_path), expected)
    assert "is damaged and is compiled again" in caplog.text


def other_weights(manifest: Manifest) -> Manifest:
    files = tuple(replace(file, sha256="0" * 64) if file.path.endswith(".bin") else file for file in manifest.files)
    return replace(manifest, files=files)


def test_other_weights_and_another_machine_have_another_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = compiled_cache.prepare(bundle.manifest, tmp_path)
    assert compiled_cache.prepare(bundle.manifest, tmp_path) == own
    assert compiled_cache.prepare(other_weights(bundle.manifest), tmp_path) != own
    here = Environment.capture()
    monkeypatch.setattr(Environment, "capture", lambda: replace(here, cpu="another processor"))
    assert compiled_cache.prepare(bundle.manifest, tmp_path) != own


def test_a_model_without_a_checksum_is_not_used(bundle: Bundle, tmp_path: Path) -> None:
    folder = compiled_cache.prepare(bundle.manifest, tmp_path)
    assert folder is not None
    (folder / "1.blob").write_bytes(b"of a process that was killed")
    compiled_cache.prepare(bundle.manifest, tmp_path)
    assert not list(folder.iterdir())


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that root cannot write to either")
@pytest.mark.parametrize("fmt", ["openvino", "ort"])
def test_a_read_only_folder_does_not_stop_an_engine(
    shared_bundle: Callable[[str], Bundle], fmt: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = answer(shared_bundle(fmt), Path("/sys/kernel/edgevit"))
    assert np.array_equal(found, answer(shared_bundle(fmt)))
    assert "as a cache" in caplog.text and "choose another folder" in caplog.text


def test_a_full_disk_leaves_a_model_without_a_checksum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.blob").write_bytes(b"compiled")
    with files_up_to(8), caplog.at_level(logging.WARNING):
        compiled_cache.seal(tmp_path)
    assert "choose another folder" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["1.blob"]


def test_a_folder_that_cannot_be_written_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="choose another folder"):
        compiled_cache.prepare(bundle.manifest, tmp_path / "file")
