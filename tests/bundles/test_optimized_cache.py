"""ONNX Runtime's saved optimized graphs: equal answers and layers, never of another engine, and never damaged."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgevit.bundles import compiled_cache
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import open_engine
from edgevit.errors import PrecisionError
from edgevit.files import try_lock
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.runtimes.onnxruntime_cache import OpenedSession, OptimizedGraph
from tests.helpers.file_limits import files_up_to

FEEDS = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}
LOAD = "import edgevit, sys; edgevit.load(sys.argv[1], threads=1, cache_dir=sys.argv[2]).close()"


@pytest.fixture(scope="module")
def bundle(shared_bundle: Callable[[str], Bundle]) -> Bundle:
    return shared_bundle("ort")


def answer(bundle: Bundle, cache: Path | None = None) -> np.ndarray:
    with open_engine(bundle, threads=1, cache_dir=cache) as engine:
        return np.asarray(engine.run(FEEDS)["logits"])


def graph(cache: Path) -> Path:
    """Return the folder of the only saved graph."""
    (found,) = cache.glob("*/*/graph")
    return found


def weights(cache: Path) -> Path:
    (found,) = graph(cache).glob("*.bin")
    return found


def is_saved_graph_used(bundle: Bundle, cache: Path) -> bool:
    with open_engine(bundle, threads=1, cache_dir=cache) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        return "DISABLE_ALL" in str(engine._session.get_session_options().graph_optimization_level)


def left_over(cache: Path) -> list[Path]:
    return list(cache.glob("*/*/part"))


def test_a_saved_graph_is_used_and_gives_equal_answers_and_layers(bundle: Bundle, tmp_path: Path) -> None:
    expected = answer(bundle)
    assert np.array_equal(answer(bundle, tmp_path), expected)
    before = sorted(file.stat().st_mtime_ns for file in graph(tmp_path).iterdir())
    assert is_saved_graph_used(bundle, tmp_path)
    assert np.array_equal(answer(bundle, tmp_path), expected)
    assert sorted(file.stat().st_mtime_ns for file in graph(tmp_path).iterdir()) == before
    assert not left_over(tmp_path)


def test_layers_have_the_names_and_precisions_of_an_engine_without_a_cache(bundle: Bundle, tmp_path: Path) -> None:
    found = []
    for cache in (None, tmp_path, tmp_path):
        with open_engine(bundle, threads=1, cache_dir=cache) as engine:
            profile = engine.profile_layers(FEEDS, runs=1)
            assert profile is not None
            layers = [(layer.name, layer.kind, layer.macs, layer.precision) for layer in profile.layers]
            found.append((sorted(layers, key=str), engine.executed_layers(), engine.executed_precision()))
    assert found[1] == found[0]
    assert found[2] == found[0]


def truncate(cache: Path) -> None:
    os.truncate(weights(cache), weights(cache).stat().st_size // 2)


def change_a_weight(cache: Path) -> None:
    content = bytearray(weights(cache).read_bytes())
    content[len(content) // 2] ^= 1
    weights(cache).write_bytes(content)


def empty_the_graph(cache: Path) -> None:
    (graph(cache) / "model.onnx").write_bytes(b"")


def delete_the_weights(cache: Path) -> None:
    weights(cache).unlink()


def make_unreadable(cache: Path) -> None:
    path = weights(cache)
    path.unlink()
    path.mkdir()  # no permission stops a test that runs as root


def cut_the_record(cache: Path) -> None:
    record = graph(cache) / "record.json"
    record.write_bytes(record.read_bytes()[:-20])


def change_the_record(cache: Path) -> None:
    record = graph(cache) / "record.json"
    content = json.loads(record.read_text())
    content["content"]["layers"] = {"int8": 1}
    record.write_text(json.dumps(content))


def replace_by_a_file(cache: Path) -> None:
    path = graph(cache)
    shutil.rmtree(path)
    path.write_bytes(b"of another program")


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        change_a_weight,
        empty_the_graph,
        delete_the_weights,
        make_unreadable,
        cut_the_record,
        change_the_record,
        replace_by_a_file,
    ],
)
def test_a_damaged_graph_is_saved_again(
    bundle: Bundle, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = answer(bundle, tmp_path)
    damage(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(answer(bundle, tmp_path), expected)
    assert "is damaged and is saved again" in caplog.text
    assert is_saved_graph_used(bundle, tmp_path)
    assert not left_over(tmp_path)


def with_other_weights(bundle: Bundle) -> Bundle:
    """Return the bundle as if its engine file had other contents."""
    files = tuple(replace(file, sha256="0" * 64) for file in bundle.manifest.files)
    return replace(bundle, manifest=replace(bundle.manifest, files=files))


def test_a_graph_of_another_engine_is_not_used(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answer(bundle, tmp_path)
    (own,) = tmp_path.iterdir()
    other = with_other_weights(bundle)
    folder = compiled_cache.prepare(other.manifest, tmp_path)
    assert folder is not None and folder != own
    shutil.copytree(own, folder, dirs_exist_ok=True)  # as if the cache of another machine was copied
    shutil.rmtree(own)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(answer(other, tmp_path), expected)
    assert "it is of another engine or machine" in caplog.text
    assert is_saved_graph_used(other, tmp_path)


def test_other_optimizations_and_versions_have_a_graph_of_their_own(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(bundle, tmp_path)
    build = replace(bundle.manifest.build, session={"graph_optimization": "extended"})
    extended = replace(bundle, manifest=replace(bundle.manifest, build=build))
    expected = answer(extended)
    for _ in range(2):
        assert np.array_equal(answer(extended, tmp_path), expected)
    assert len(list(tmp_path.glob("*/*/graph"))) == 2
    monkeypatch.setattr(onnxruntime, "__version__", "0.1")
    answer(bundle, tmp_path)
    assert len(list(tmp_path.glob("*/*/graph"))) == 3


def save_instead(bundle: Bundle, cache: Path, *, content: bytes | None, layers: dict[str, int]) -> None:
    """Save another graph in the place of the bundle's, or the same one if `content` is None."""
    with open_engine(bundle, threads=1, cache_dir=cache) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        settings = engine._graph_settings()
    known = graph(cache)
    files = {"model.onnx": (known / "model.onnx").read_bytes(), weights(cache).name: weights(cache).read_bytes()}

    def load(model: Path, _: str) -> OpenedSession:
        for name, own in files.items():
            (model.parent / name).write_bytes(own)
        if content is not None:
            model.write_bytes(content)
        return OpenedSession(None, layers)

    assert OptimizedGraph(known.parent.parent, settings).save(load) is not None


def test_a_graph_that_onnx_runtime_does_not_read_is_saved_again(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answer(bundle, tmp_path)
    save_instead(bundle, tmp_path, content=b"not a graph", layers={"fp32": 1})
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(answer(bundle, tmp_path), expected)
    assert "the optimized graph is saved again: ONNX Runtime cannot load" in caplog.text
    assert is_saved_graph_used(bundle, tmp_path)


def test_the_precision_of_a_saved_graph_is_required_too(bundle: Bundle, tmp_path: Path) -> None:
    answer(bundle, tmp_path)
    save_instead(bundle, tmp_path, content=None, layers={"int8": 9})
    with pytest.raises(PrecisionError, match="requested fp32"):
        open_engine(bundle, threads=1, cache_dir=tmp_path)


def test_a_full_disk_does_not_stop_an_engine(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = answer(bundle)
    with files_up_to(1 << 20), caplog.at_level(logging.WARNING):
        assert np.array_equal(answer(bundle, tmp_path), expected)
    assert "the optimized graph cannot be saved" in caplog.text
    assert not left_over(tmp_path)
    assert not list(tmp_path.glob("*/*/graph"))
    assert not is_saved_graph_used(bundle, tmp_path)
    assert is_saved_graph_used(bundle, tmp_path)


def test_a_path_that_onnx_runtime_refuses_does_not_stop_an_engine(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []  # not captured in the test's log, which pytest-xdist cannot send with such a path
    logger = logging.getLogger("edgevit.runtimes.onnxruntime_cache")
    monkeypatch.setattr(logger, "handle", lambda record: messages.append(record.getMessage()))
    found = answer(bundle, tmp_path / os.fsdecode(b"not UTF-8: \xff"))
    assert np.array_equal(found, answer(bundle))
    assert len(messages) == 1 and "the optimized graph cannot be saved" in messages[0]


def test_two_processes_may_save_at_once(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = [sys.executable, "-c", LOAD, str(bundle.path), str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    with caplog.at_level(logging.WARNING):
        assert is_saved_graph_used(bundle, tmp_path)
        assert np.array_equal(answer(bundle, tmp_path), answer(bundle))
    assert not caplog.text
    assert not left_over(tmp_path)


def test_a_graph_that_another_process_saves_is_not_waited_for(bundle: Bundle, tmp_path: Path) -> None:
    answer(bundle, tmp_path)
    home = graph(tmp_path).parent
    shutil.rmtree(home / "graph")
    with (home / "lock").open("ab") as lock:
        assert try_lock(lock)
        assert np.array_equal(answer(bundle, tmp_path), answer(bundle))
        assert not (home / "graph").exists()
    assert not is_saved_graph_used(bundle, tmp_path)  # this one saves it
    assert is_saved_graph_used(bundle, tmp_path)


def test_what_a_killed_process_left_is_removed(bundle: Bundle, tmp_path: Path) -> None:
    answer(bundle, tmp_path)
    home = graph(tmp_path).parent
    (home / "graph").rename(home / "part")
    (home / "part" / "model.onnx").write_bytes(b"half")
    answer(bundle, tmp_path)
    assert not left_over(tmp_path)
    assert is_saved_graph_used(bundle, tmp_path)
