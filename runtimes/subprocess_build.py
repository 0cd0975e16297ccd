"""Run a vendor's builder in a subprocess.

A builder may keep native state between builds, crash on some graphs, or be killed when memory runs out; none of that
may end the user's process. Parent and subprocess exchange one JSON file each way, in a folder of the parent's; the
subprocess reports progress on stdout, one line for each step, and there too that it could not read or write a file: the
disk may be full.
"""

from __future__ import annotations

import contextlib
import json
import os
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
from edgevit.files import os_reason, require_space
from edgevit.memory import OUT_OF_MEMORY
from edgevit.runtimes.base import OnPhase
from edgevit.subprocesses import last_line, python_command

Json: TypeAlias = dict[str, Any]

_REQUEST, _REPORT, _STDERR = "request.json", "report.json", "stderr.txt"
_STEP, _OS_ERROR = "edgevit step: ", "edgevit OSError: "  # NVIDIA's libraries print to stdout too
_IO_ERROR = 74  # exit status of a subprocess that has printed an OSError (EX_IOERR of sysexits.h)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A subprocess to start, and a remedy for each way in which it can fail."""

    module: str  # has a `main` that calls `serve`
    builder: str  # its name in messages
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
    """Start the subprocess, send it `request`, and return its report. Other files it writes are in `folder`.

    Raises the edgevit error or the OSError that the subprocess raised, OSError too if the disk of `folder` is full, and
    BuildError if it crashes, is killed, or takes longer than `timeout_s`. An exception raised by `on_phase`, such as an
    interrupt, stops the subprocess.
    """
    os_error: OSError | None = None
    (folder / _REQUEST).write_text(json.dumps(request), "utf-8")
    with (
        (folder / _STDERR).open("wb") as stderr,
        _started(job, folder, stderr) as process,
        _deadline(process, timeout_s) as timed_out,
    ):
        for line in process.stdout or ():
            if on_phase is not None and line.startswith(_STEP):
                on_phase(*json.loads(line.removeprefix(_STEP)))
            elif line.startswith(_OS_ERROR):
                os_error = OSError(*json.loads(line.removeprefix(_OS_ERROR)))
        status = process.wait()
    if timed_out.is_set():
        raise BuildError(
            f"{job.builder} did not finish {job.model} in {timeout_s:g} s and was stopped; {job.when_late}"
        )
    if os_error is not None:
        raise os_error
    if status != 0 or not (folder / _REPORT).exists():  # a library that ends the process leaves no report
        require_space(folder)  # a full disk has no room for the reason either
        raise BuildError(_exit_reason(job, status, (folder / _STDERR).read_text("utf-8", "replace")))
    answer: Json = json.loads((folder / _REPORT).read_text("utf-8"))
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    report: Json = answer["report"]
    return report


@contextlib.contextmanager
def _started(job: Job, folder: Path, stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """Start the subprocess, and kill it if an exception leaves the block."""
    with _start(job, folder, stderr) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _start(job: Job, folder: Path, stderr: IO[bytes]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            python_command(str(folder.resolve()), module=job.module),
            cwd=folder,  # files that a library leaves in the current folder are removed with this one
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise BuildError(
            f"cannot start a process to build {job.model}: {os_reason(error)}; free some memory"
        ) from error


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str], timeout_s: float | None) -> Iterator[threading.Event]:
    """Kill the process after `timeout_s`; the event tells whether that happened."""
    timed_out = threading.Event()
    if timeout_s is None:
        yield timed_out
        return

    def stop() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        yield timed_out
    finally:
        timer.cancel()


def _exit_reason(job: Job, status: int, stderr: str) -> str:
    """Return in one line why a subprocess ended without a report."""
    last = last_line(stderr)
    if status == -signal.SIGKILL:
        return f"{job.process} was killed, as systems do when memory runs out; {job.when_killed}"
    shown = f" ({last})" if last else ""
    if OUT_OF_MEMORY.search(stderr):
        return f"{job.process} ran out of memory{shown}; {job.when_killed}"
    if status < 0:
        return f"{job.process} crashed with {_signal_name(-status)}{shown}; {job.when_crashed}"
    return f"{job.process} ended with status {status}{shown}; {job.when_broken}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


# The subprocess's side


def serve(work: Callable[[Json, Path, OnPhase], Json], arguments: Sequence[str]) -> int:
    """Call `work` with the request in the folder `arguments[0]`, and write its report, or its error, there."""
    folder = Path(arguments[0])
    _prefer_to_be_killed()
    try:
        request: Json = json.loads((folder / _REQUEST).read_text("utf-8"))
        try:
            answer: Json = {"report": work(request, folder, _print_step)}
        except EdgevitError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        (folder / _REPORT).write_text(json.dumps(answer), "utf-8")
    except OSError as error:
        _print_os_error(error)
        return _IO_ERROR
    return 0


def _print_os_error(error: OSError) -> None:
    """Print an OSError for the parent on stdout, which is a pipe: stderr is a file, on a disk that may be full."""
    values = [error.errno, os_reason(error), os.fsdecode(error.filename) if error.filename else None]
    sys.stdout.write(f"\n{_OS_ERROR}{json.dumps(values)}\n")
    sys.stdout.flush()


def _print_step(phase: str, done: float) -> None:
    sys.stdout.write(f"{_STEP}{json.dumps([phase, done])}\n")
    sys.stdout.flush()


def _prefer_to_be_killed() -> None:
    """Let Linux kill this process first when memory runs out, and not the parent, which reports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
