"""Signals that end a run."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import shell

SWALLOWS = """
import os, signal
from torch import nn

class Deaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4)
        self.once = True

    def forward(self, x):
        if self.once:
            self.once = False
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except:
                pass
        return self.conv(x).mean((2, 3))

def build():
    return Deaf()
"""


def test_a_signal_that_the_model_swallows_is_raised_at_the_next_stage(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(SWALLOWS)
    run = shell(f"edgevit export {tmp_path / 'deaf.py'}:build --fmt ort --img-size 16 --out {tmp_path / 'out'}")
    assert run.returncode == 128 + signal.SIGTERM
    assert run.stderr.count("edgevit: stopped by SIGTERM; nothing is left behind") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_signal_is_reported() -> None:
    line = "edgevit export shiftvit_cifar10 --fmt ort --out /nonexistent & sleep 1; kill -TERM $!; wait $!"
    run = shell(line)
    assert run.returncode == 128 + signal.SIGTERM
    assert "edgevit: stopped by SIGTERM; nothing is left behind" in run.stderr


@pytest.mark.parametrize(("prefix", "expected"), [("", 128 + signal.SIGHUP), ("nohup ", 0)])
def test_an_ignored_sighup_stays_ignored(prefix: str, expected: int, tmp_path: Path) -> None:
    """`nohup` ignores SIGHUP in the process that it starts."""
    code = (
        "import os, signal\nfrom edgevit.cli.signals import Stop\nStop().install()\nos.kill(os.getpid(), signal.SIGHUP)"
    )
    (tmp_path / "hang_up.py").write_text(code)
    command = f"{prefix}{shlex.quote(sys.executable)} {tmp_path / 'hang_up.py'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
