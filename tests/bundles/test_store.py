"""Bundles appear whole or not at all, whatever interrupts the process that writes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevit.bundles import store
from edgevit.errors import ExportError
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


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_interrupted_publication_is_undone(
    failing: int, after: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three renames publish two bundles: the older one away, the first in, the second in."""
    calls, replace = 0, os.replace

    def cut_off(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls != failing or after:
            replace(source, target)
        if calls == failing:
            raise error

    with store.staging(tmp_path) as folder:
        targets = two_bundles(folder, tmp_path)
        monkeypatch.setattr(os, "replace", cut_off)
        with pytest.raises(ExportError if isinstance(error, OSError) else KeyboardInterrupt):
            store.publish(targets)
        assert all((made / "new").exists() for made in targets)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert (tmp_path / "first" / "manifest.json").read_text() == "older"


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        if target == tmp_path / "first":
            (target / "theirs").mkdir(parents=True)
        replace(source, target)

    with store.staging(tmp_path) as folder:
        targets = two_bundles(folder, tmp_path)
        monkeypatch.setattr(os, "replace", late)
        with pytest.raises(ExportError, match="cannot write .*first"):
            store.publish(targets)
    assert [path.name for path in tmp_path.rglob("*")] == ["first", "theirs"]


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
    command = [sys.executable, "-c", STAGE_OFTEN, str(tmp_path), "400"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=120)[1] for run in runs] == ["", "", ""]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ExportError, match="--out"), store.staging(tmp_path / "file" / "out"):
        pass


EXPORT = [sys.executable, "-m", "edgevit", "export", "shiftvit_cifar10", "--fmt", "openvino", "--no-latency", "--out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_export_leaves_no_bundle(number: signal.Signals, tmp_path: Path) -> None:
    """After SIGKILL a staging folder is left, which holds no manifest and is deleted by the next process."""
    process = subprocess.Popen([*EXPORT, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".edgevit-*/*/model.onnx")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, number)
    status = process.wait(timeout=120)
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert list(tmp_path.rglob("manifest.json")) == []
    if number is not signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []
    with store.staging(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_kill_during_onnxsim_leaves_no_temporary_files(tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [*EXPORT, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("before.onnx")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait(timeout=120)
    assert list(tmp_path.rglob("before.onnx")) != []
    with store.staging(out):
        pass
    assert list(out.iterdir()) == []
    assert list(temporary.glob("edgevit-*")) == []


FULL_DISK = """
import resource, sys
from edgevit.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("fmt", ["onnx", "openvino"])
def test_a_full_disk_is_one_clear_line(fmt: str, tmp_path: Path) -> None:
    """A limit of 1 MB per file, for a model of 5 MB, fails in the same way as a full disk."""
    command = [sys.executable, "-c", FULL_DISK, "1000000", *EXPORT[3:5], "--fmt", fmt, "--no-latency", "--out"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode in (4, 5), done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("edgevit: ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
