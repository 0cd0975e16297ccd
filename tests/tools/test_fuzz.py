"""No random input and no kill escapes: a small share of the attempts every day, ten thousand in `make test-all`."""

from __future__ import annotations

import subprocess
import sys

import pytest

QUICK = ("manifest", "reference", "classes", "lint", "build", "baseline", "image", "labels", "layout", "disk", "kills")


def fuzz(*words: str) -> str:
    """Run the tool in a process of its own, which forks before any library starts threads; return its output."""
    command = [sys.executable, "-m", "tests.tools.fuzz", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_sixty_attempts_find_no_escape() -> None:
    output = fuzz("--tries", "60", *(word for kind in QUICK for word in ("--kind", kind)))
    assert [line.split()[0] for line in output.splitlines()[1:]] == [*QUICK]


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_ten_thousand_attempts_find_no_escape() -> None:
    fuzz("--tries", "10000")
