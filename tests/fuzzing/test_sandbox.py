"""The sandbox finds each way in which an attempt can escape, and accepts the attempts that end as they should."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgevit.errors import UsageError
from tests.fuzzing.sandbox import Attempt, run_attempts


def stands() -> int:
    raise UsageError("wrong")


def bug() -> int:
    raise KeyError("unforeseen")


def unknown_status() -> int:
    sys.stderr.write("edgevit: something\n")
    return 42


def silent() -> int:
    return 2


def talks() -> int:
    raise UsageError("x" * 3000)


def warns() -> int:
    sys.stderr.write("UserWarning: from a library\n")
    return 0


def crashes() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def hangs() -> int:
    time.sleep(30)
    return 0


def eats() -> int:
    return len(b"x" * (1100 << 20)) * 0


def leaves() -> int:
    Path("half-written").touch()
    return 0


def accepts() -> int:
    return 0


REASONS: dict[Callable[[], int], str] = {
    stands: "",
    bug: "status exception, KeyError",
    unknown_status: "status 42",
    silent: "no message",
    talks: "3010 characters",
    warns: "a foreign line",
    crashes: "ended by SIGKILL",
    hangs: "hangs",
    leaves: "left behind with status 0: half-written",
    accepts: "a damaged file is accepted",
    eats: "MB of memory",
}


def test_every_escape_is_found(tmp_path: Path) -> None:
    targets = list(REASONS)

    def prepare(number: int, _place: Path) -> Attempt:
        target = targets[number]
        return Attempt(target=target, must_fail=target is accepts, limit_s=1 if target is hangs else 20)

    outcome = run_attempts(prepare, range(len(targets)), tmp_path)
    found = {targets[escape.number]: escape.reason for escape in outcome.escapes}
    assert outcome.tries == len(targets)
    assert {target for target, reason in REASONS.items() if reason not in found.get(target, "")} == set()
    assert stands not in found
