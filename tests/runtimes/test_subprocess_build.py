"""Child processes and every way in which they end. This file is the child's as well, in its last lines."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevit import errors
from edgevit.errors import BuildError, EdgevitError
from edgevit.runtimes import subprocess_build as child
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.subprocess_build import Json

JOB = child.Job(
    module="tests.runtimes.test_subprocess_build",
    builder="Builder",
    model="vit.onnx",
    when_killed="free some memory",
    when_crashed="try another graph",
    when_broken="install it again",
    when_late="build a smaller model",
)
ERRORS = sorted(name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, EdgevitError))


def work(request: Json, folder: Path, on_phase: OnPhase) -> Json:
    """What a request asks of the child."""
    sys.stdout.write("noise of a library\n")
    for step in range(request.get("steps", 0)):
        on_phase("Building", (step + 1) / request["steps"])
    if "raises" in request:
        raise getattr(errors, request["raises"])("what went wrong; what to do")
    if "signal" in request:
        os.kill(os.getpid(), request["signal"])
    if "breaks" in request:
        raise RuntimeError("half of it is missing")
    if "ends" in request:
        os._exit(request["ends"])
    if "takes" in request:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))  # stands for a machine without that much
        bytearray(request["takes"])
    if "bytes" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))  # stands for a disk that is full
        (folder / "model.engine").write_bytes(b"x" * request["bytes"])
    time.sleep(request.get("sleep_s", 0))
    score = Path("/proc/self/oom_score_adj")
    return {
        "pid": os.getpid(),
        "oom_score": int(score.read_text()) if score.exists() else 1000,
        "path": sys.path[0],
        "paths": sys.path,
    }


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended keeps its number, and no command line, until its parent asks."""
    try:
        os.kill(pid, 0)
        return not Path("/proc/self").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_report_comes_back_from_another_process(tmp_path: Path) -> None:
    report = child.run(JOB, {}, tmp_path)
    assert report["pid"] != os.getpid()
    assert report["oom_score"] == 1000  # where memory runs out, it goes before this process
    assert Path(report["path"]) == tmp_path  # no stray module of the user's folder is taken for a library


def test_a_path_that_the_user_gave_leads_to_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["libraries", ""]))
    (tmp_path / "child").mkdir()
    paths = child.run(JOB, {}, tmp_path / "child")["paths"]
    assert str(tmp_path / "libraries") in paths
    assert str(tmp_path / "child" / "libraries") not in paths
    assert str(tmp_path) not in paths


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_of_ours_crosses_as_itself(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgevitError, match="what went wrong; what to do") as raised:
        child.run(JOB, {"raises": name}, tmp_path)
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
        ({"breaks": True}, r"ended with status 1 \(RuntimeError: half of it is missing\); install it again"),
        ({"ends": 0}, "ended with status 0; install it again"),
        ({"takes": 1 << 40}, r"vit\.onnx ran out of memory \(MemoryError\); free some memory"),
        ({"bytes": 2000}, r"^cannot read or write \S+: File too large; free some space$"),
    ],
)
def test_every_end_of_the_child_is_one_clear_line(tmp_path: Path, request_: Json, words: str) -> None:
    with pytest.raises(BuildError, match=words) as raised:
        child.run(JOB, request_, tmp_path)
    assert raised.value.exit_status == 5
    assert "\n" not in str(raised.value)


def test_a_child_without_end_is_stopped(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(BuildError, match=r"did not finish vit\.onnx in 0\.5 s and was stopped; build a smaller"):
        child.run(JOB, {"sleep_s": 60}, tmp_path, timeout_s=0.5)
    assert time.monotonic() - start < 30


def test_progress_comes_as_it_is_made_and_noise_does_not(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    child.run(JOB, {"steps": 4}, tmp_path, on_phase=lambda phase, done: told.append((phase, done)))
    assert told == [("Building", 0.25), ("Building", 0.5), ("Building", 0.75), ("Building", 1.0)]


def test_an_interrupt_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_phase: str, _done: float) -> None:
        raise KeyboardInterrupt

    pids: list[int] = []
    started = child._start

    def start(*arguments: object) -> object:
        process = started(*arguments)  # type: ignore[arg-type]
        pids.append(process.pid)
        return process

    monkeypatch.setattr(child, "_start", start)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        child.run(JOB, {"steps": 1, "sleep_s": 60}, tmp_path, on_phase=interrupt)
    assert time.monotonic() - begun < 30
    assert [alive(pid) for pid in pids] == [False]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system tells no process's children")
def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from edgevit.runtimes import subprocess_build as child
from tests.runtimes.test_subprocess_build import JOB
child.run(JOB, {{"steps": 1, "sleep_s": 60}}, Path({str(tmp_path)!r}), on_phase=lambda *_: print("builds", flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "builds\n"
        (own,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    for _ in range(100):
        if not alive(int(own)):
            return
        time.sleep(0.1)
    pytest.fail("the child goes on building")


if __name__ == "__main__":
    sys.exit(child.serve(work, sys.argv[1:]))
