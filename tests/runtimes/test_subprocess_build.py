"""Builds in a subprocess, and every way in which it can end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevit import errors
from edgevit.errors import BuildError, EdgevitError
from edgevit.runtimes import subprocess_build
from edgevit.runtimes.subprocess_build import Json
from tests.helpers.build_worker import JOB
from tests.helpers.file_limits import small_disk

ERRORS = sorted(name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, EdgevitError))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended has no command line, but keeps its number until its parent waits."""
    try:
        os.kill(pid, 0)
        return not Path("/proc/self").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_report_comes_from_another_process(tmp_path: Path) -> None:
    report = subprocess_build.run(JOB, {}, tmp_path)
    assert report["pid"] != os.getpid()
    assert report["oom_score"] == 1000  # when memory runs out, Linux kills it first
    assert str(tmp_path) not in report["path"]  # its current folder


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_subprocess_keeps_its_class(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgevitError, match="what is wrong; what to do") as raised:
        subprocess_build.run(JOB, {"raises": name}, tmp_path)
    assert type(raised.value) is getattr(errors, name)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            {"signal": signal.SIGKILL},
            r"the process in which Builder built vit\.onnx was killed, as systems do when memory runs out; free some",
        ),
        ({"signal": signal.SIGSEGV}, "crashed with SIGSEGV; try another graph"),
        ({"signal": signal.SIGABRT}, "crashed with SIGABRT; try another graph"),
        ({"signal": 40}, "crashed with signal 40; try another graph"),
        ({"breaks": True}, r"ended with status 1 \(RuntimeError: a library is missing\); install it again"),
        ({"ends": 0}, "ended with status 0; install it again"),
        ({"takes": 1 << 40}, r"vit\.onnx ran out of memory \(MemoryError\); free some memory"),
    ],
)
def test_a_subprocess_that_fails_is_an_error_in_one_line(tmp_path: Path, request_: Json, words: str) -> None:
    with pytest.raises(BuildError, match=words) as raised:
        subprocess_build.run(JOB, request_, tmp_path)
    assert raised.value.exit_status == 5
    assert "\n" not in str(raised.value)


def test_a_file_that_the_subprocess_cannot_write_is_the_same_error_here(tmp_path: Path) -> None:
    """Callers report an OSError of any build in the same words, with status 4."""
    with pytest.raises(OSError, match="File too large") as raised:
        subprocess_build.run(JOB, {"bytes": 2000}, tmp_path)
    assert raised.value.errno == errno.EFBIG


@pytest.mark.parametrize("request_", [{"writes_until_full": True}, {"breaks": True, "writes_until_full": True}])
def test_a_full_disk_is_told_apart_from_a_broken_library(request_: Json, tmp_path: Path) -> None:
    """It was "ended with status 120; install it again": the reason was on stderr, a file on the full disk."""
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(OSError, match="No space left on device") as raised:
            subprocess_build.run(JOB, request_, disk)
        assert raised.value.errno == errno.ENOSPC


def test_a_subprocess_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(BuildError, match=r"did not finish vit\.onnx in 0\.5 s and was stopped; build a smaller"):
        subprocess_build.run(JOB, {"sleep_s": 60}, tmp_path, timeout_s=0.5)
    assert time.monotonic() - start < 30


def test_progress_is_reported_and_other_output_is_not(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    subprocess_build.run(JOB, {"steps": 4}, tmp_path, on_phase=lambda phase, done: steps.append((phase, done)))
    assert steps == [("Building", 0.25), ("Building", 0.5), ("Building", 0.75), ("Building", 1.0)]


def test_an_interrupt_kills_the_subprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_phase: str, _done: float) -> None:
        raise KeyboardInterrupt

    pids: list[int] = []
    original = subprocess_build._start

    def start(*arguments: object) -> object:
        process = original(*arguments)  # type: ignore[arg-type]
        pids.append(process.pid)
        return process

    monkeypatch.setattr(subprocess_build, "_start", start)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        subprocess_build.run(JOB, {"steps": 1, "sleep_s": 60}, tmp_path, on_phase=interrupt)
    assert time.monotonic() - started < 30
    assert [alive(pid) for pid in pids] == [False]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc/PID/task/TID/children")
def test_the_subprocess_of_a_killed_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from edgevit.runtimes import subprocess_build
from tests.helpers.build_worker import JOB
request = {{"steps": 1, "sleep_s": 60}}
subprocess_build.run(JOB, request, Path({str(tmp_path)!r}), on_phase=lambda *_: print("builds", flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "builds\n"
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    for _ in range(100):
        if not alive(int(child)):
            return
        time.sleep(0.1)
    pytest.fail("the subprocess is still running")
