"""Bundles appear whole or not at all, whatever interrupts the process that writes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from edgevit.bundles import store
from edgevit.errors import ExportError
from edgevit.files import exchange
from tests.fuzzing.kill_loop import kill_once, publish_number, read_number, small_bundle
from tests.fuzzing.tiny_bundle import TINY_MODEL
from tests.helpers.bundles import sample_manifest


def test_a_new_bundle_replaces_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    (tmp_path / "model" / "old").write_text("old")
    with store.staging(tmp_path) as folder:
        (folder / "model").mkdir()
        store.write_manifest(folder / "model", sample_manifest())
        store.publish({folder / "model": tmp_path / "model"})
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "manifest.json"]


def test_a_folder_that_is_not_a_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("mine")
    with store.staging(tmp_path) as folder:
        (folder / "model").mkdir()
        with pytest.raises(ExportError, match="is not a bundle"):
            store.publish({folder / "model": tmp_path / "model"})
    assert (tmp_path / "model" / "thesis.tex").read_text() == "mine"


def two_bundles(folder: Path, out: Path) -> dict[Path, Path]:
    """Two finished bundles; the first replaces an older one."""
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        (folder / name / "new").touch()
        store.write_manifest(folder / name, sample_manifest())
    (out / "first").mkdir()
    (out / "first" / "manifest.json").write_text("older")
    return {folder / name: out / name for name in ("first", "second")}


@pytest.mark.parametrize("obstacle", ["folder", "file", "dangling link"])
def test_several_bundles_are_published_together_or_not_at_all(obstacle: str, tmp_path: Path) -> None:
    with store.staging(tmp_path) as folder:
        targets = two_bundles(folder, tmp_path)
        if obstacle == "folder":
            (tmp_path / "second").mkdir()
        elif obstacle == "file":
            (tmp_path / "second").touch()
        else:
            (tmp_path / "second").symlink_to("nowhere")
        with pytest.raises(ExportError, match="second exists and is not a bundle"):
            store.publish(targets)
    assert (tmp_path / "first" / "manifest.json").read_text() == "older"


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways to replace a bundle: an atomic exchange, and two renames on file systems without it."""
    if request.param == "two renames":
        monkeypatch.setattr(store, "exchange", _no_exchange)
    return str(request.param)


def _no_exchange(_first: Path, _second: Path) -> bool:
    return False


def test_a_copied_folder_has_the_same_files_links_and_mode_without_those_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    for name in ("model.onnx", "manifest.json", "inner/model.bin"):
        (source / name).write_text(name)
    (source / "link").symlink_to("model.onnx")
    source.chmod(0o700)
    store.copy_folder(source, tmp_path / "copy", left_out=("manifest.json",))
    copy = tmp_path / "copy"
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*")} == {
        *("model.onnx", "inner", "inner/model.bin", "link")
    }
    assert (copy / "inner" / "model.bin").read_text() == "inner/model.bin"
    assert (copy / "link").readlink() == Path("model.onnx")
    assert copy.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_interrupted_publication_is_undone(
    failing: int, after: bool, error: BaseException, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange and a rename publish two bundles, or three renames: the older one away, the first in, the second."""
    if way == "exchange" and failing == 3:
        pytest.skip("there are only two steps")
    calls = 0

    def interrupt(step: Callable[[Path, Path], Any]) -> Callable[[Path, Path], Any]:
        def interrupted(source: Path, target: Path) -> Any:
            nonlocal calls
            calls += 1
            result = step(source, target) if calls != failing or after else None
            if calls == failing:
                raise error
            return result

        return interrupted

    with store.staging(tmp_path) as folder:
        targets = two_bundles(folder, tmp_path)
        monkeypatch.setattr(os, "replace", interrupt(os.replace))
        if way == "exchange":
            monkeypatch.setattr(store, "exchange", interrupt(exchange))
        with pytest.raises(ExportError if isinstance(error, OSError) else KeyboardInterrupt):
            store.publish(targets)
        assert all((made / "new").exists() for made in targets)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert (tmp_path / "first" / "manifest.json").read_text() == "older"


def test_a_folder_that_appears_after_the_check_is_not_replaced(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path, target: Path) -> bool:
        shutil.rmtree(target)
        (target / "theirs").mkdir(parents=True)
        return way == "exchange" and exchange(folder, target)

    with store.staging(tmp_path) as folder:
        targets = two_bundles(folder, tmp_path)
        monkeypatch.setattr(store, "exchange", late)
        with pytest.raises(ExportError, match="cannot write .*first: it exists and is not a bundle"):
            store.publish(targets)
        monkeypatch.setattr(store, "exchange", exchange)
    assert [path.name for path in tmp_path.rglob("*")] == ["first", "theirs"]


def test_a_folder_that_appears_between_two_renames_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        if target == tmp_path / "first":
            (target / "theirs").mkdir(parents=True)
        replace(source, target)

    with store.staging(tmp_path) as folder:
        targets = two_bundles(folder, tmp_path)
        monkeypatch.setattr(store, "exchange", _no_exchange)
        monkeypatch.setattr(os, "replace", late)
        with pytest.raises(ExportError, match="cannot write .*first"):
            store.publish(targets)
    assert [path.name for path in tmp_path.rglob("*")] == ["first", "theirs"]


def test_a_published_bundle_with_the_same_name_as_a_link_replaces_the_link(way: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "manifest.json").write_text("older")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model").symlink_to(elsewhere)
    with store.staging(out) as folder:
        (folder / "model").mkdir()
        store.write_manifest(folder / "model", sample_manifest())
        store.publish({folder / "model": out / "model"})
    assert not (out / "model").is_symlink()
    assert (elsewhere / "manifest.json").read_text() == "older"
    assert [path.name for path in out.iterdir()] == ["model"], way


def test_sigkill_at_any_moment_leaves_a_whole_bundle(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees a whole bundle at every moment; `tests.tools.fuzz` does the same hundreds of times."""
    monkeypatch.setattr(store, "_flush", lambda _: None)  # slow, and needed only against power cuts
    publish_number(tmp_path, 0)
    random = Random(way)
    for kills in range(100):  # on a busy machine the first processes publish nothing
        assert kill_once(tmp_path, random) == ""
        if kills >= 5 and read_number(tmp_path) > 0:
            break
    assert read_number(tmp_path) > 0
    monkeypatch.setattr(store, "_UNLOCKED_S", 0)  # of folders killed before they were locked or after they were emptied
    with store.staging(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    read_number(tmp_path)


@pytest.mark.parametrize("restored_by", ["a reader", "the next writer"])
def test_a_kill_between_two_renames_is_repaired(restored_by: str, tmp_path: Path) -> None:
    abandoned = tmp_path / ".edgevit-killed"
    abandoned.mkdir()
    (abandoned / ".lock").touch()
    small_bundle(abandoned / "model", "2")
    small_bundle(abandoned / "model.replaced", "1")
    if restored_by == "a reader":
        assert read_number(tmp_path) == 1
    else:
        with store.staging(tmp_path):
            assert (tmp_path / "model" / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_staging_folders_of_killed_processes_are_deleted_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    for name in ("killed", "killed-before-it-was-locked", "just-made"):
        (tmp_path / f".edgevit-{name}" / "model").mkdir(parents=True)
    (tmp_path / ".edgevit-killed" / ".lock").touch()
    os.utime(tmp_path / ".edgevit-killed-before-it-was-locked", (0, time.time() - 61))
    with store.staging(tmp_path) as living, store.staging(tmp_path) as other:
        assert set(tmp_path.iterdir()) == {living, other, tmp_path / ".edgevit-just-made"}
        assert [path.name for path in living.iterdir()] == [".lock"]


STAGE_OFTEN = """
import sys
from pathlib import Path
from edgevit.bundles.store import staging
for _ in range(int(sys.argv[2])):
    with staging(Path(sys.argv[1])) as folder:
        (folder / "file").touch()
        assert (folder / "file").exists()
"""


def test_concurrent_processes_do_not_delete_each_others_folders(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STAGE_OFTEN, str(tmp_path), "100"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=120)[1] for run in runs] == ["", "", ""]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ExportError, match="--out"), store.staging(tmp_path / "file" / "out"):
        pass


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start the export of a tiny model into tmp_path/out; OpenVINO's conversion leaves time to interrupt it."""
    (tmp_path / "tiny.py").write_text(TINY_MODEL)
    words = ["tiny.py:build", "--img-size", "16", "--fmt", "openvino", "--no-latency", "--out", "out"]

    def start(*options: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "edgevit", "export", *words, *options],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return start


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.large
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_export_leaves_no_bundle(
    number: signal.Signals, export: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """After SIGKILL a staging folder is left, which holds no manifest and is deleted by the next process."""
    process, out = export(), tmp_path / "out"
    wait_for(out, ".edgevit-*/*/model.onnx")
    os.kill(process.pid, number)
    status = process.wait(timeout=120)
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert list(out.rglob("manifest.json")) == []
    if number is not signal.SIGKILL:
        assert list(out.iterdir()) == []
    with store.staging(out):
        pass
    assert list(out.iterdir()) == []


@pytest.mark.large
def test_a_kill_during_onnxsim_leaves_no_temporary_files(
    export: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = export("--onnxsim", TMPDIR=str(temporary))
    wait_for(tmp_path, "**/before.onnx")
    process.kill()
    process.wait(timeout=120)
    assert list(tmp_path.rglob("before.onnx")) != []
    with store.staging(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []
    assert list(temporary.glob("edgevit-*")) == []


FULL_DISK = """
import resource, sys
from edgevit.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.large
@pytest.mark.parametrize("fmt", ["onnx", "openvino"])
def test_a_full_disk_is_one_clear_line(fmt: str, tmp_path: Path) -> None:
    """A limit of 1 MB per file, for a model of 5 MB, fails in the same way as a full disk."""
    command = [
        sys.executable,
        "-c",
        FULL_DISK,
        "1000000",
        "export",
        "shiftvit_cifar10",
        "--fmt",
        fmt,
        "--no-latency",
        "--out",
    ]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "File too large; free some space" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("edgevit: ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
