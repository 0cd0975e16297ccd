"""Output: JSON files, full disks, closed streams and encodings."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.cli.console import Console
from edgevit.cli.tables import make_table
from edgevit.errors import EXIT_STATUSES
from edgevit.models import registry
from tests.helpers.cli import PHOTO, ordinary_user, shell, status


def test_an_unwritable_json_path_is_reported_before_the_work(one_line: Callable[[], str], tmp_path: Path) -> None:
    """The error comes before the export starts, not after its minutes of work."""
    arguments = ["export", "shiftvit_cifar10", "--fmt", "ort", "--out", str(tmp_path / "out")]
    assert status(*arguments, "--json", tmp_path / "no" / "folder.json") == 2
    assert "--json" in one_line()
    assert status(*arguments, "--json", tmp_path) == 2
    assert "--json" in one_line()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [".", "/"])
def test_the_error_of_a_failed_command_is_not_written_into_a_folder(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("plan", "missing.onnx", "--json", folder) == 2
    assert f"cannot write {folder}: not a file" in capsys.readouterr().err


def test_a_pipe_receives_json_in_a_folder_that_is_read_only(tmp_path: Path) -> None:
    """As /dev/null and the pipe of `--json >(jq .)` are, for all but root."""
    pipe, found = tmp_path / "folder" / "pipe", tmp_path / "found.json"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    pipe.parent.chmod(0o500)
    run = shell(
        f"{ordinary_user()}edgevit completion bash --json {shlex.quote(str(pipe))} & "
        f"timeout 60 cat {shlex.quote(str(pipe))} > {shlex.quote(str(found))}; wait $!"
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(found.read_text())["shell"] == "bash"


def no_space(*_paths: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_json_write_keeps_the_older_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("as it was")
    monkeypatch.setattr(os, "replace", no_space)
    assert status("list", "--json", kept) == 2
    assert kept.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [kept]
    assert "choose another path for --json" in capsys.readouterr().err


PRINT = """
import sys
from edgevit.cli.console import prepare_streams

prepare_streams()
for path in sys.argv[1:]:
    print(path)
"""


@pytest.mark.parametrize("command", ["edgevit list > /dev/full", "edgevit list --json - > /dev/full"])
def test_output_to_a_full_disk_is_one_line(command: str) -> None:
    run = shell(command)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["edgevit: cannot read or write: No space left on device"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_stdout_cannot_encode_is_printed_nevertheless(encoding: str, tmp_path: Path) -> None:
    """It was a traceback with status 1 after a successful export."""
    for name in ("kätze", "k\udcff"):
        shutil.copy(PHOTO, tmp_path / f"{name}.png")
    run = subprocess.run(
        [sys.executable, "-c", PRINT, *sorted(str(path) for path in tmp_path.iterdir())],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert b"k\xff.png" in run.stdout
    assert "kätze.png".encode(encoding, "backslashreplace") in run.stdout


def test_control_characters_are_printed_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """A name in a file could clear the screen, or turn what follows it around."""
    name = "\x1b]0;owned\u202e \x9b2J"
    table = make_table(None, "column")
    table.add_row(name)
    Console().result(f"a line: {name}\n\tand its second", table)
    escaped = r"\x1b]0;owned\u202e \x9b2J"
    printed = capsys.readouterr().out
    assert printed.splitlines()[:2] == [f"a line: {escaped}", "        and its second"]
    assert printed.count(escaped) == 2
    assert all(each.isprintable() for each in printed.splitlines())


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_does_not_fail_a_command(closed: str, tmp_path: Path) -> None:
    """A file opened later must not get the number of the closed stream, and its output."""
    run = shell(f"edgevit list --json {shlex.quote(str(tmp_path / 'models.json'))} {closed}")
    assert (run.returncode, run.stderr) == (0, "")
    assert len(json.loads((tmp_path / "models.json").read_text())["models"]) == len(registry.list_models(task=None))


@pytest.mark.parametrize("command", ["edgevit list --json -", "edgevit list", "edgevit doctor", "edgevit no 2>&1"])
def test_a_closed_pipe_ends_the_command_silently(command: str) -> None:
    """Tables went through rich, which ended the process with status 1: that lint found errors."""
    run = shell(f"{command} | true")
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, "")
    assert 128 + signal.SIGPIPE in EXIT_STATUSES
