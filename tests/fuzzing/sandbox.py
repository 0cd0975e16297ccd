"""Run attempts to break edgevit in forked processes with limits, and judge how each of them ended.

A process that is forked from one that has imported everything starts in milliseconds. It makes many attempts one
after another; if one of them ends the process, the next process goes on after it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from edgevit.cli.main import main
from edgevit.errors import EXIT_STATUSES, INTERNAL_ERROR, EdgevitError, ParityError

MAX_MESSAGE = 2000  # characters of stderr
MAX_GROWTH_MB = 1000  # of resident memory
_ADDRESS_SPACE_MB = 4000  # beyond what the process has at its start; keeps the machine alive
_PER_PROCESS = 50
_PROGRESS = re.compile(r"  .+: ([0-9.]+ s|[0-9]+ of [0-9]+)")

Target: TypeAlias = "Sequence[str] | Callable[[], int]"  # a command line, or a function that returns a status


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt to break edgevit, prepared in a folder that is the current one while it runs.

    `must_fail` is set if a file is not the one that its hash was taken of: status 0 is an escape then. `may_leave` are
    the top-level names that it may add to the folder.
    """

    target: Target
    note: str = ""
    must_fail: bool = False
    may_leave: frozenset[str] = frozenset()
    limit_s: int = 10
    file_bytes: int | None = None  # size that no file may exceed: a full disk

    def __str__(self) -> str:
        shown = self.target.__name__ if callable(self.target) else " ".join(map(repr, self.target))
        return f"{shown[:300]} ({self.note[:300]})" if self.note else shown[:300]


@dataclass(frozen=True, kw_only=True)
class Escape:
    """An attempt that edgevit did not stand: its number and the reason."""

    number: int
    reason: str


@dataclass(kw_only=True)
class Outcome:
    """Attempts made, statuses by count, and escapes."""

    tries: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    escapes: list[Escape] = field(default_factory=list)


Prepare: TypeAlias = Callable[[int, Path], Attempt]  # prepares the attempt of a number in an empty folder


def run_attempts(prepare: Prepare, numbers: Sequence[int], folder: Path) -> Outcome:
    """Make the attempts of `numbers`, each in a fresh folder below `folder`."""
    outcome = Outcome()
    pending = list(numbers)
    while pending:
        pending = _run_in_fork(prepare, pending, folder, outcome)
    return outcome


def _run_in_fork(prepare: Prepare, numbers: list[int], folder: Path, outcome: Outcome) -> list[int]:
    """Make the first attempts in one process; return the numbers that remain."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _serve(prepare, numbers[:_PER_PROCESS], folder, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        reports = [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}")]
    status = os.waitpid(process, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # processes that it started
    done = 0
    for report in reports:
        if "reason" not in report:  # the start of an attempt
            continue
        done += 1
        outcome.statuses[report["status"]] = outcome.statuses.get(report["status"], 0) + 1
        if report["reason"]:
            outcome.escapes.append(Escape(number=report["number"], reason=f"{report['reason']}: {report['attempt']}"))
    started = [report for report in reports if "reason" not in report]
    if done < min(_PER_PROCESS, len(numbers)):
        shown = started[-1]["attempt"] if len(started) > done else "its preparation failed"
        outcome.escapes.append(Escape(number=numbers[done], reason=f"{_death(status)}: {shown}"))
        done += 1
    outcome.tries += done
    return numbers[done:]


def _death(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return "hangs"
    return f"ended by {signal.Signals(number).name}" if number else f"ended the process with {status >> 8}"


def _serve(prepare: Prepare, numbers: Sequence[int], folder: Path, writer: int) -> None:
    """Make attempts and report each to the parent. Does not return."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        limit = _size_bytes() + (_ADDRESS_SPACE_MB << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            place = folder / "try"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            os.chdir(place)
            attempt = prepare(number, place)
            _tell(writer, {"number": number, "attempt": str(attempt)})
            status, reason = _judged(attempt, place)
            _tell(writer, {"number": number, "attempt": str(attempt), "status": status, "reason": reason})
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _tell(writer: int, report: dict[str, Any]) -> None:
    os.write(writer, json.dumps(report).encode() + b"\n")


def _judged(attempt: Attempt, place: Path) -> tuple[str, str]:
    """Make an attempt; return its status and the reason why it is an escape, or ""."""
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ.update(TMPDIR=str(temporary), EDGEVIT_CACHE=str(temporary / "cache"))
    tempfile.tempdir = str(temporary)
    before = _listing(place)
    peak_mb = _peak_mb()
    signal.alarm(attempt.limit_s)
    with _captured(place.parent) as read, _limited(attempt):
        status = _status(attempt.target)
    signal.alarm(0)
    output, errors = read()
    reason = (
        _wrong_status(attempt, status, errors)
        or _wrong_output(status, output, errors)
        or _leftovers(attempt, place, before, status)
    )
    if not reason and _peak_mb() - peak_mb > MAX_GROWTH_MB:
        reason = f"took {_peak_mb() - peak_mb} MB of memory"
    return str(status), reason


@contextlib.contextmanager
def _limited(attempt: Attempt) -> Iterator[None]:
    """Apply the attempt's limit on the size of files."""
    if attempt.file_bytes is None:
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (attempt.file_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _status(target: Target) -> int | str:
    try:
        return target() if callable(target) else main(target)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else f"exit {leave.code!r}"
    except EdgevitError as error:  # of a function
        sys.stderr.write(f"edgevit: {error}\n")
        return error.exit_status
    except BaseException:
        traceback.print_exc()
        return "exception"


def _wrong_status(attempt: Attempt, status: int | str, errors: str) -> str:
    if status == INTERNAL_ERROR:
        found = re.search(r"full traceback: (\S+)", errors)
        text = Path(found[1]).read_text(errors="replace") if found and Path(found[1]).is_file() else errors
        return f"status 70, {_last_frame(text)}"
    if status not in EXIT_STATUSES:
        return f"status {status}, {_last_frame(errors)}"
    is_lint = not callable(attempt.target) and attempt.target[:1] == ["lint"]
    if status == 1 and not is_lint:
        return f"status 1, {errors[-300:]}"
    return "a damaged file is accepted" if attempt.must_fail and status == 0 else ""


def _wrong_output(status: int | str, output: str, errors: str) -> str:
    if "Traceback (most recent call last)" in errors or "Traceback (most recent call last)" in output:
        return f"a traceback, {_last_frame(errors)}"
    if len(errors) > MAX_MESSAGE:
        return f"{len(errors)} characters on stderr, {errors[:200]!r}"
    lines = [line for line in errors.splitlines() if not _PROGRESS.fullmatch(line)]
    if status == ParityError.exit_status:  # with a table of the differences
        return ""
    if foreign := [line for line in lines if not line.startswith("edgevit: ")]:
        return f"a foreign line on stderr, {foreign[0][:200]!r}"
    return "no message" if status not in (0, 1) and not lines else ""


def _last_frame(text: str) -> str:
    """Return the last lines of a traceback: the place in edgevit and the error."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    inside = [f"{Path(path).name}:{line} {name}" for path, line, name in frames if "site-packages" not in path][-2:]
    last = text.strip().splitlines()[-1:] or [""]
    return f"{last[0][:200]} at {' < '.join(reversed(inside))}"


def _leftovers(attempt: Attempt, place: Path, before: set[str], status: int | str) -> str:
    allowed = attempt.may_leave
    new = sorted(
        name
        for name in _listing(place) - before
        if name.split("/")[0] not in allowed and not name.startswith("tmp/cache")
    )
    return f"left behind with status {status}: {', '.join(new)[:200]}" if new else ""


def _listing(place: Path) -> set[str]:
    return {
        str((Path(root) / name).relative_to(place))
        for root, *both in os.walk(place)
        for names in both
        for name in names
    }


@contextlib.contextmanager
def _captured(folder: Path) -> Iterator[Callable[[], tuple[str, str]]]:
    """Send descriptors 1 and 2, sys.stdout and sys.stderr to files; yield a function that reads them."""
    paths = [folder / "stdout", folder / "stderr"]
    kept = os.dup(1), os.dup(2)
    for number, path in enumerate(paths, 1):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", errors, write_through=True)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    try:
        yield lambda: (_read(paths[0]), _read(paths[1]))
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number, original in enumerate(kept, 1):
            os.dup2(original, number)
            os.close(original)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1 << 20).decode("utf-8", "replace")


def _peak_mb() -> int:
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(own, children) >> 10


def _size_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
