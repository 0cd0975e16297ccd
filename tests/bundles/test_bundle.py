"""Bundles are whole or not there: changed, missing and truncated files are refused, and nothing is half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgevit
from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import open_engine
from edgevit.cli.main import main
from edgevit.errors import BuildError, BundleError, ExportError


def test_a_copy_works_anywhere(own_bundle: Bundle) -> None:
    with edgevit.load(own_bundle.path) as engine:
        assert engine.inputs[0].name == "images"


def test_every_changed_byte_is_noticed(own_bundle: Bundle) -> None:
    for entry in own_bundle.manifest["files"]:
        path = own_bundle.path / entry["path"]
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(BundleError, match=path.name):
            edgevit.load(own_bundle)
        path.write_bytes(content)
    edgevit.load(own_bundle).close()


def test_missing_and_truncated_files_are_noticed(own_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """One of each kind that a bundle holds, by the command line: status 2 and one line."""
    for entry in own_bundle.manifest["files"]:
        path = own_bundle.path / entry["path"]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert "not the file that was exported" in _refused(own_bundle, capsys)
        path.unlink()
        assert f"lacks {entry['path']}" in _refused(own_bundle, capsys)
        path.write_bytes(content)
    assert main(["verify", str(own_bundle.path)]) == 0


def test_a_changed_hash_in_the_manifest_is_noticed(own_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((own_bundle.path / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (own_bundle.path / "manifest.json").write_text(json.dumps(manifest))
    assert "another hash" in _refused(own_bundle, capsys)


def _refused(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> str:
    """What `verify` says of a bundle that it refuses with status 2."""
    assert main(["verify", str(bundle.path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "lacks"),
    ],
)
def test_a_broken_manifest_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        edgevit.load(tmp_path)


def damage(bundle: Bundle, place: str, value: Any = None, *, drop: bool = False) -> None:
    """Sets or drops the entry of the manifest at a place such as "build.batch"."""
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    *parts, last = place.split(".")
    section = manifest
    for part in parts:
        section = section[int(part) if part.isdigit() else part]
    if drop:
        del section[last]
    else:
        section[last] = value
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def own_ort(made: Callable[[str], Bundle], tmp_path: Path) -> Bundle:
    """A copy to break."""
    return Bundle.open(shutil.copytree(made("ort").path, tmp_path / "own"))


MISSING = [
    "model.name", "model.weights", "model.source", "model.options", "model.num_classes", "model.preprocessing",
    "model.preprocessing.mean", "model.preprocessing.input_size", "files.0.path", "files.0.sha256", "runtime.fmt",
    "runtime.engine_files", "precision.asked", "build.batch", "build.dynamic_batch", "inputs.0.shape", "outputs.0.name",
]  # fmt: skip
WRONG: list[tuple[str, Any]] = [
    *((name, None) for name in ("model", "files", "runtime", "precision", "build", "inputs", "outputs")),
    *((name, {}) for name in ("model", "runtime", "precision", "build", "runtime.engine_files")),
    ("build.batch", "x"),
    ("build.batch", 0),
    ("build.batch", 1.5),
    ("build.batch", True),
    ("build.dynamic_batch", [1, 2]),
    ("build.dynamic_batch", [4, 2, 1]),
    ("files", [None]),
    ("files", "x" * 1000),
    ("files.0.path", 3),
    ("files.0.path", "\0"),
    ("files.0.size_bytes", "1"),
    ("runtime.fmt", None),
    ("runtime.engine_files", "model.onnx"),
    ("runtime.engine_files", [None]),
    ("precision.asked", "fp99"),
    ("precision.asked", []),
    ("model.preprocessing", {}),
    ("model.preprocessing.mean", ["a", "b", "c"]),
    ("model.preprocessing.mean", [0.5]),
    ("model.preprocessing.std", 1),
    ("model.preprocessing.input_size", [3, 32]),
    ("model.preprocessing.interpolation", []),
    ("precision.layers", {"fp32": "x"}),
    ("precision.multiply_adds", []),
    ("typing", "x"),
    ("typing", {"share": "x"}),
]


@pytest.mark.parametrize("place", MISSING)
def test_a_manifest_that_lacks_an_entry_is_named(place: str, own_ort: Bundle) -> None:
    damage(own_ort, place, drop=True)
    named = re.escape(re.sub(r"\.(\d+)", r"[\1]", place))
    with pytest.raises(BundleError, match=rf"manifest\.json is damaged: {named} is missing; export the bundle again$"):
        Bundle.open(own_ort.path)


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_manifest_with_a_wrong_entry_is_one_short_line(place: str, value: Any, own_ort: Bundle) -> None:
    damage(own_ort, place, value)
    with pytest.raises(BundleError) as raised:
        Bundle.open(own_ort.path)
    message = str(raised.value)
    assert message.endswith("export the bundle again")
    assert "\n" not in message
    assert len(message) < len(str(own_ort.path)) + 200


@pytest.mark.parametrize("command", ["verify", "run", "latency", "build", "eval", "plan"])
@pytest.mark.parametrize(
    ("place", "value"),
    [("runtime", {}), ("files", None), ("files", [{}]), ("build", {}), ("build.batch", "x"), ("model", None),
     ("model.preprocessing", {})],
)  # fmt: skip
def test_every_command_says_that_a_manifest_is_damaged(
    command: str, place: str, value: Any, own_ort: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path(edgevit.__file__).parent / "data" / "photos"
    more = {"run": [str(photos)], "eval": ["--data", str(photos)]}
    damage(own_ort, place, value)
    assert main([command, str(own_ort.path), *more.get(command, [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{own_ort.path / 'manifest.json'} is damaged" in line


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "classes.txt"])
def test_a_file_without_a_hash_is_not_opened(name: str, own_ort: Bundle) -> None:
    files = own_ort.manifest["files"]
    damage(own_ort, "files", [entry for entry in files if entry["path"] != name])
    (own_ort.path / name).write_bytes(b"another file")
    with pytest.raises(BundleError, match=f"no hash of {re.escape(name)}"):
        Bundle.open(own_ort.path)


def test_a_manifest_without_any_hash_is_refused(own_bundle: Bundle) -> None:
    damage(own_bundle, "files", [])
    with pytest.raises(BundleError, match="no hash of"):
        Bundle.open(own_bundle.path)


def test_every_file_of_an_engine_has_a_hash(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    """Those beside the one that is opened, too."""
    own = Bundle.open(shutil.copytree(made("openvino").path, tmp_path / "own"))
    for name in ("model.xml", "model.bin"):
        damage(own, "files", [entry for entry in own.manifest["files"] if entry["path"] != name])
        with pytest.raises(BundleError, match=f"no hash of {re.escape(name)}"):
            Bundle.open(own.path)


@pytest.mark.parametrize("way", ["beside", "absolute", "hashed"])
def test_an_engine_lies_in_its_bundle(way: str, own_ort: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own_ort.path, tmp_path / "other")) / "model.onnx"
    path = str(other) if way == "absolute" else "../other/model.onnx"
    damage(own_ort, "runtime.engine_files", [path])
    if way == "hashed":
        (entry,) = (entry for entry in own_ort.manifest["files"] if entry["path"] == "model.onnx")
        damage(own_ort, "files", [*own_ort.manifest["files"], {**entry, "path": path}])
    with pytest.raises(BundleError, match="outside itself" if way == "hashed" else f"no hash of {re.escape(path)}"):
        edgevit.load(own_ort)


def test_a_link_in_a_bundle_does_not_lead_out_of_it(own_ort: Bundle, tmp_path: Path) -> None:
    shutil.move(own_ort.path / "model.onnx", tmp_path / "elsewhere.onnx")
    (own_ort.path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="outside itself"):
        Bundle.open(own_ort.path)


def test_a_bundle_whose_engine_is_yet_to_be_built_opens_and_so_does_one_with_notes_beside(own_ort: Bundle) -> None:
    damage(own_ort, "runtime.engine_files", [])
    (own_ort.path / "notes.txt").write_text("mine")
    assert Bundle.open(own_ort.path).engine_path is None


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        edgevit.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is not a bundle"):
        edgevit.load(tmp_path)


def test_a_manifest_cannot_point_outside_its_folder(own_bundle: Bundle) -> None:
    manifest = json.loads((own_bundle.path / "manifest.json").read_text())
    manifest["files"].append({"path": "../../etc/passwd", "size_bytes": 1, "sha256": ""})
    (own_bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside itself"):
        edgevit.load(own_bundle)


def test_an_engine_that_is_truncated_behind_the_manifests_back_does_not_load(own_bundle: Bundle) -> None:
    """The hash is the first guard; the runtime's own loading is the second."""
    engine = own_bundle.engine_path
    assert engine is not None
    engine.write_bytes(engine.read_bytes()[:1000])
    with pytest.raises(BuildError, match="cannot load"):
        open_engine(own_bundle)


SECTIONS = ("model", "runtime", "precision", "build", "inputs", "outputs")


def test_a_newer_bundle_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    (tmp_path / "model" / "old").write_text("old")
    with store.staging(tmp_path) as folder:
        (folder / "model").mkdir()
        store.write_manifest(folder / "model", {key: {} for key in SECTIONS})
        store.publish({folder / "model": tmp_path / "model"})
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "manifest.json"]


def test_something_else_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("mine")
    with store.staging(tmp_path) as folder:
        (folder / "model").mkdir()
        with pytest.raises(ExportError, match="is not a bundle"):
            store.publish({folder / "model": tmp_path / "model"})
    assert (tmp_path / "model" / "thesis.tex").read_text() == "mine"


def two_bundles(folder: Path, out: Path) -> dict[Path, Path]:
    """Two finished bundles, the first of which is to take the place of an older one."""
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        (folder / name / "new").touch()
        store.write_manifest(folder / name, {key: {} for key in SECTIONS})
    (out / "first").mkdir()
    (out / "first" / "manifest.json").write_text("older")
    return {folder / name: out / name for name in ("first", "second")}


@pytest.mark.parametrize("obstacle", ["folder", "file", "dangling link"])
def test_of_several_bundles_none_is_published_where_one_cannot_be(obstacle: str, tmp_path: Path) -> None:
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
def test_what_was_renamed_is_put_back_where_publishing_is_cut_off(
    failing: int, after: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three renames publish the two: the older one away, the first in, the second in."""
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


def test_a_run_that_was_faster_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_staging_clears_what_a_killed_run_left_and_spares_a_living_one(tmp_path: Path) -> None:
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


def test_runs_at_once_leave_each_others_folders_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STAGE_OFTEN, str(tmp_path), "400"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=120)[1] for run in runs] == ["", "", ""]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ExportError, match="--out"), store.staging(tmp_path / "file" / "out"):
        pass


EXPORT = [sys.executable, "-m", "edgevit", "export", "shiftvit_cifar10", "--fmt", "openvino", "--no-latency", "--out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_kill_in_the_middle_leaves_no_bundle(number: signal.Signals, tmp_path: Path) -> None:
    """A killed process cannot clear up after itself; what it leaves is no bundle, and the next run clears it."""
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


def test_a_kill_during_onnxsim_leaves_nothing_that_no_run_clears(tmp_path: Path) -> None:
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
    """A quota of 1 MB a file, where the model needs five: what a full disk answers."""
    command = [sys.executable, "-c", FULL_DISK, "1000000", *EXPORT[3:5], "--fmt", fmt, "--no-latency", "--out"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode in (4, 5), done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("edgevit: ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
