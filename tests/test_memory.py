"""A process with little address space ends with one line, before a native library ends it."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20, resource.RLIM_INFINITY))
from edgevit.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("limit_mb", "words", "minimum_mb"),
    [
        (150, ["doctor"], 256),
        (600, ["list"], 768),
        (1000, ["export", "shiftvit_t", "--fmt", "ort"], 1280),
    ],
)
def test_too_little_address_space_is_one_line(limit_mb: int, words: list[str], minimum_mb: int) -> None:
    command = [sys.executable, "-c", LIMITED, str(limit_mb), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"edgevit: out of memory: the address space is limited to {limit_mb} MB")
    assert f"needs at least {minimum_mb} MB" in line
