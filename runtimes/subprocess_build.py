"""A build in a child process: a request in, a report out, and any end of the child one clear line.

A vendor's builder keeps native state between the builds of one process, some graphs crash it, and the system kills it
where memory runs out: none of that may take the user's process along. Parent and child exchange one JSON file each way,
in a folder that the parent owns; on the child's stdout stands its progress, a line a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from edgevit import errors
from edgevit.errors import BuildError, EdgevitError
from edgevit.runtimes.base import OnPhase

Json: TypeAlias = dict[str, Any]

_REQUEST, _REPORT, _STDERR = "request.json", "report.json", "stderr.txt"
_STEP = "edgevit step: "  # what NVIDIA's libraries print stands on stdout too
_NO_MEMORY = re.compile(r"bad_alloc|MemoryError|cannot allocate memory|failed to map segment", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1
_DISK_FULL = 73  # the exit status of a child that could not write; by its own words on stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a child is started for, and the remedies for its ends."""

    module: str  # with a `main` that calls `serve`
    builder: str  # as people call it
    model: str  # the file's name
    when_killed: str
    when_crashed: str
    when_broken: str
    when_late: str = ""

    @property
    def process(self) -> str:
        return f"the process in which {self.builder} built {self.model}"


# The parent's side


def run(
    job: Job, request: Json, folder: Path, *, timeout_s: float | None = None, on_phase: OnPhase | None = None
) -> Json:
    """The report of a child that does what `request` asks; what it makes besides lies in `folder`.

    Raises the edgevit error that the child raised, BuildError where it crashes, is killed, or takes too long. What
    `on_phase` raises ends the child, as an interrupt does.
    """
    (folder / _REQUEST).write_text(json.dumps(request), "utf-8")
    with (
        (folder / _STDERR).open("wb") as stderr,
        _started(job, folder, stderr) as process,
        _deadline(process, timeout_s) as late,
    ):
        for line in process.stdout or ():
            if on_phase is not None and line.startswith(_STEP):
                on_phase(*json.loads(line.removeprefix(_STEP)))
        status = process.wait()
    if late.is_set():
        raise BuildError(
            f"{job.builder} did not finish {job.model} in {timeout_s:g} s and was stopped; {job.when_late}"
        )
    if status != 0 or not (folder / _REPORT).exists():  # a library that ends its process takes the report along
        raise BuildError(_death(job, status, (folder / _STDERR).read_text("utf-8", "replace")))
    answer: Json = json.loads((folder / _REPORT).read_text("utf-8"))
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    report: Json = answer["report"]
    return report


@contextlib.contextmanager
def _started(job: Job, folder: Path, stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The child, which does not outlive an error or an interrupt in the parent."""
    with _start(job, folder, stderr) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _start(job: Job, folder: Path, stderr: IO[bytes]) -> subprocess.Popen[str]:
    root = str(Path(errors.__file__).resolve().parent.parent)
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [root, *map(os.path.abspath, given)]  # the child has a folder of its own
    try:
        return subprocess.Popen(
            [sys.executable, "-m", job.module, str(folder.resolve())],
            cwd=folder,  # Python looks for modules here first: an empty place
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise BuildError(f"cannot start a process to build {job.model} in: {error}; free some memory") from error


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str], timeout_s: float | None) -> Iterator[threading.Event]:
    """Kills the process after `timeout_s`; the event says whether that came to pass."""
    late = threading.Event()
    if timeout_s is None:
        yield late
        return

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _death(job: Job, status: int, stderr: str) -> str:
    """Why a child that left no report died, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if status == _DISK_FULL and lines:
        return lines[-1]
    if status == -signal.SIGKILL:
        return f"{job.process} was killed, as systems do when memory runs out; {job.when_killed}"
    last = f" ({lines[-1]})" if lines else ""
    if _NO_MEMORY.search(stderr):
        return f"{job.process} ran out of memory{last}; {job.when_killed}"
    if status < 0:
        return f"{job.process} crashed with {_signal_name(-status)}{last}; {job.when_crashed}"
    return f"{job.process} ended with status {status}{last}; {job.when_broken}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


# The child's side


def serve(work: Callable[[Json, Path, OnPhase], Json], arguments: Sequence[str]) -> int:
    """Does `work` with the request that lies in the folder named first, and leaves its report, or its error, there."""
    folder = Path(arguments[0])
    _stand_first_in_line()
    _end_with_parent()
    try:
        request: Json = json.loads((folder / _REQUEST).read_text("utf-8"))
        try:
            answer: Json = {"report": work(request, folder, _tell)}
        except EdgevitError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        (folder / _REPORT).write_text(json.dumps(answer), "utf-8")
    except OSError as error:
        reason = f"cannot read or write {error.filename or folder}: {error.strerror or error}"
        sys.stderr.write(f"{reason}; free some space\n")
        return _DISK_FULL
    return 0


def _end_with_parent() -> None:
    """Has Linux end this process with its parent: one that is killed cannot do it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _tell(phase: str, done: float) -> None:
    sys.stdout.write(f"{_STEP}{json.dumps([phase, done])}\n")
    sys.stdout.flush()


def _stand_first_in_line() -> None:
    """Where memory runs out, Linux kills this process rather than the one that can tell the user."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
