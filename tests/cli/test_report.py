"""`edgevit report` and `edgevit latency --report`."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.latency_file import keep_latency
from tests.bundles.test_report import make_bundle, measured
from tests.helpers import samples
from tests.helpers.cli import ordinary_user, shell, status
from tests.helpers.json_schema import violations

SCHEMA = Path(__file__).parents[2] / "docs" / "report_schema.json"


HEADLINE = "not certified: 0.0 s recorded, 60 s needed; 18 runs, 64 needed; unknown: clocks held, parity of this engine"


@pytest.fixture
def kept(tmp_path: Path) -> Bundle:
    bundle = make_bundle(tmp_path / "vit-fp32-openvino")
    keep_latency(bundle, [measured(bundle)])
    return bundle


def test_the_report_is_written_in_every_form(kept: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, csv_file, markdown, content = (tmp_path / f"r.{suffix}" for suffix in ("html", "csv", "MD", "json"))
    assert status("report", kept.path, "--out", f"{html},{csv_file}", "--out", markdown, "--out", content) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A board, A processor: {HEADLINE}",
        *(f"report: {path}" for path in (html, csv_file, markdown, content)),
    ]
    assert html.read_text().startswith("<!DOCTYPE html>") and markdown.read_text().startswith("# Latency of model")
    assert len(list(csv.reader(csv_file.open()))) == 2
    assert violations(json.loads(content.read_text()), json.loads(SCHEMA.read_text())) == []


def test_the_report_is_markdown_on_stdout_by_default(kept: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("report", kept.path) == 0
    assert capsys.readouterr().out.startswith("# Latency of model\n")
    assert status("report", kept.path, "--json", "-") == 0
    assert violations(json.loads(capsys.readouterr().out)["report"], json.loads(SCHEMA.read_text())) == []


def test_the_name_of_a_board_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "vit-fp32-openvino")
    board = dataclasses.replace(samples.BOARD, board="A\x1b[2J\nreport: board\u202e")
    keep_latency(bundle, [measured(bundle, environment=board)])
    assert status("report", bundle.path, "--out", tmp_path / "r.md") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("A [2J report: board , A processor: ") and second == f"report: {tmp_path / 'r.md'}"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("r.pdf", "unknown kind of report: r.pdf; its name must end in .html, .md, .csv, .json"),
        ("no/such/folder/r.md", "cannot write no/such/folder/r.md: not a file in a writable folder"),
        ("r.md,", "the path is empty"),
    ],
)
@pytest.mark.parametrize("command", [("report", "--out"), ("latency", "--report")])
def test_a_file_that_cannot_be_written_ends_the_command_at_once(
    command: tuple[str, str], out: str, message: str, kept: Bundle, one_line: Callable[[], str]
) -> None:
    name, option = command
    assert status(name, kept.path, option, out) == 2
    assert message in one_line()


@pytest.mark.parametrize("command", ["report {} --out", "latency {} --report"])
def test_a_read_only_folder_ends_the_command_at_once(command: str, kept: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    run = shell(f"{ordinary_user()}edgevit {command.format(kept.path)} {folder / 'r.md'}")
    assert run.returncode == 2
    assert run.stderr.startswith(f"edgevit: cannot write {folder / 'r.md'}: not a file in a writable folder")
