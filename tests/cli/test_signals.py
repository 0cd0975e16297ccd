"""Signals that end a run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.cli.main import main
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


@pytest.mark.parametrize(
    ("command", "remains"),
    [
        ("export", "nothing is left behind"),
        ("tune", "what was measured stays in the cache; run it again, without --fresh, to go on"),
    ],
)
def test_the_message_says_what_stays(
    command: str, remains: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted search said that nothing is left behind, and left its folder in the cache on purpose."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgevit.cli.main.require_writable", interrupted)
    assert main([command, "shiftvit_cifar10", *(["--fmt", "ort"] if command == "export" else [])]) == 130
    assert capsys.readouterr().err == f"edgevit: interrupted; {remains}\n"

    def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("edgevit.cli.main.require_writable", stopped)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit):
            main([command, "shiftvit_cifar10", *(["--fmt", "ort"] if command == "export" else [])])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == f"edgevit: stopped by SIGTERM; {remains}\n"
