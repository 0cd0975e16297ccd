"""Python subprocesses: the same imports as this process, nothing from the current folder, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgevit
from edgevit.errors import EdgevitError
from edgevit.export.simplify import simplify
from edgevit.latency.memory import peak_memory_of
from edgevit.runtimes import subprocess_build
from edgevit.subprocesses import python_command, run_python
from tests.helpers.build_worker import JOB
from tests.helpers.graphs import parse, run

GRAPH = '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'
SHADOWED = ("ctypes", "edgevit", "json", "numpy", "onnx", "onnxsim", "os", "resource", "runpy", "site", "sitecustomize")


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, also on this process's sys.path, with modules that leave a file if they are imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('{name}\\n')\n")
    monkeypatch.chdir(folder)
    return folder


def imported(folder: Path) -> str:
    log = folder.parent / "imported"
    return log.read_text() if log.exists() else ""


def test_code_in_a_subprocess_imports_nothing_from_the_current_folder(
    hostile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")  # an empty entry means the current folder
    with monkeypatch.context() as patched:
        patched.setattr(sys, "path", ["", *sys.path])  # as after `python -m edgevit`
        command = python_command(code="import json, resource, onnx, numpy, edgevit; print(edgevit.__file__)")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (imported(hostile_folder), done.stderr) == ("", "")
    assert Path(done.stdout.strip()) == Path(edgevit.__file__)


def test_no_subprocess_of_edgevit_imports_from_the_current_folder(hostile_folder: Path, tmp_path: Path) -> None:
    subprocess_build.run(JOB, {}, tmp_path)
    peak_memory_of(python_command(code="import onnx, resource", is_child=False))
    simplify(parse(GRAPH), run)
    assert imported(hostile_folder) == ""


def test_the_same_edgevit_is_imported_from_a_clone_that_is_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(edgevit.__file__).parents[1]
    monkeypatch.chdir(root)
    done = run_python(code="import edgevit; print(edgevit.__file__)")
    assert Path(done.stdout.strip()) == root / "edgevit" / "__init__.py"


def test_a_module_added_to_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import sys; print(__name__, sys.argv[1:])")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_python("a", "b c", module="mine").stdout == "__main__ ['a', 'b c']\n"
    assert run_python("a", code="import mine").stdout == "mine ['a']\n"


def test_status_and_stderr_are_kept() -> None:
    done = run_python(code="import sys; sys.exit('no engine')")
    assert (done.returncode, done.stderr) == (1, "no engine\n")


def test_a_subprocess_that_takes_too_long_is_stopped() -> None:
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_python(code="import time; time.sleep(60)", timeout_s=0.5)
    assert time.monotonic() - start < 30


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux only")
@pytest.mark.parametrize(
    "call", ["run_python(code=SLEEP)", "peak_memory_of(python_command(code=SLEEP, is_child=False))"]
)
def test_subprocesses_of_a_killed_parent_are_killed(call: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    sleep = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"from edgevit.latency.memory import *; from edgevit.subprocesses import *; SLEEP = {sleep!r}; {call}"
    with subprocess.Popen(python_command(code=code)) as parent:
        pid = _wait_for(pid_file)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the subprocess is still running")


def _wait_for(pid_file: Path) -> int:
    for _ in range(600):
        if pid_file.exists() and pid_file.read_text():
            return int(pid_file.read_text())
        time.sleep(0.1)
    raise EdgevitError("the subprocess did not start")
