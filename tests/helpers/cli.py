"""Run command lines in a test."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.cli.main import main

PHOTO = Path(__file__).parents[2] / "edgevit" / "data" / "photos" / "chelsea.png"

USER_MODEL = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Tiny()

def broken():
    raise OSError("no such checkpoint")

def number():
    return 3
"""


def status(*arguments: str | Path) -> int:
    """Run a command in this process and return its exit status, also if it ends by SystemExit."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which the first `edgevit` is the one under test."""
    line = command.replace("edgevit", f"{shlex.quote(sys.executable)} -m edgevit", 1)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def ordinary_user() -> str:
    """Return the start of a line for `shell` that obeys the permissions of folders, which root does not."""
    if os.geteuid() != 0:
        return ""
    if shutil.which("setpriv") is None:
        pytest.skip("root writes anywhere, and setpriv is not installed")
    return "setpriv --bounding-set=-dac_override,-dac_read_search "


def last_line(capsys: pytest.CaptureFixture[str], *, progress: str = "") -> str:
    """Return the error message, the last line on stderr. Each line before it must start with `progress`."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(progress) for line in lines[:-1]), lines
    assert lines[-1].startswith("edgevit: ")
    return lines[-1]
