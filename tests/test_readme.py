"""What the README says runs: its commands, its Python, and the tables that follow from the registries."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from edgevit.cli.main import command_line, main
from tests.tools import readme

TEXT = readme.README.read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line.removeprefix("$ "), comments=True)[1:]
    for language, block in BLOCKS
    if language in ("sh", "console")
    for line in block.splitlines()
    if line.removeprefix("$ ").startswith("edgevit ")
]


def test_tables_follow_from_the_registries() -> None:
    assert readme.updated(TEXT) == TEXT, "write them anew: python -m tests.tools.readme"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_is_one_that_there_is(arguments: list[str]) -> None:
    command_line().parse_args(arguments)


def test_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command on the small trained model, in order, and then the Python that uses its bundle."""
    photo = readme.README.parent / "edgevit" / "data" / "photos" / "chelsea.png"
    shutil.copy(photo, tmp_path / "chelsea.png")
    monkeypatch.chdir(tmp_path)
    quick = [arguments for arguments in COMMANDS if any("shiftvit_cifar10" in word for word in arguments)]
    assert len(quick) >= 4
    for arguments in quick:
        assert main(arguments) == 0, arguments
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
    assert "cat" in capsys.readouterr().out
