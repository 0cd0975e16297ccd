"""Parse arguments, run one command, map exceptions to exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import edgevit.cli
from edgevit.cli import console
from edgevit.cli import main as cli
from edgevit.cli.main import COMMANDS, command_line, commands
from tests.helpers.cli import status


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (["exprot", "shiftvit_t"], 2, "Did you mean 'export'"),
        (["export", "shiftvitt", "--fmt", "ort"], 2, "Did you mean 'shiftvit_t'"),
        (["export", "shiftvit_t", "--fmt", "onxruntime"], 2, "Did you mean 'onnxruntime'"),
        (["export", "shiftvit_t", "--fmt", "ort,ort"], 2, "duplicate format"),
        (["export", "shiftvit_t", "--fmt", "ort", "--precison", "fp16"], 2, "Did you mean '--precision'"),
        (["export", "shiftvit_t"], 2, "--fmt"),
        (["export", "shiftvit_t", "--fmt", "ort", "--fp16", "--int8"], 2, "choose one precision"),
        (["export", "shiftvit_t", "--fmt", "ort", "--batch", "0"], 2, "at least one image"),
        (["export", "shiftvit_t", "--fmt", "ort", "--batch", "2", "--dynamic-batch", "1:2:4"], 2, "exclude each other"),
        (["export", "shiftvit_t", "--fmt", "ort", "--dynamic-batch", "4:2:1"], 2, "MIN <= OPT <= MAX"),
        (["export", "shiftvit_t", "--fmt", "ort", "--dynamic-batch", "8"], 2, "MIN:OPT:MAX"),
        (["export", "shiftvit_t", "--fmt", "ort", "--weights", "nowhere.pth"], 2, "no weights file"),
        (["export", "shiftvit_t", "--fmt", "ort", "--fp16"], 9, "does not run fp16"),
        (["export", "shiftvit_t", "--fmt", "openvino", "--half"], 9, "does not run fp16"),
        (["export", "shiftvit_t", "--fmt", "trt", "--int8"], 2, "--calib DIR"),
        (["export", "shiftvit_t", "--fmt", "ort", "--calib", "."], 2, "requires --precision fp16 or int8"),
        (
            ["export", "shiftvit_t", "--fmt", "ort", "--int8", "--calib", ".", "--max-drop", "some"],
            2,
            "not a percentage",
        ),
        (
            ["export", "shiftvit_t", "--fmt", "ort", "--int8", "--calib", ".", "--max-drop", "150%"],
            2,
            "at least 0% and below 100%, got 150%",
        ),
        (["export", "shiftvit_t", "--fmt", "openvino", "--fp16"], 9, "does not run fp16 here"),
        (["export", "shiftvit_t", "--fmt", "ort", "--calib", "."], 2, "requires --precision fp16 or int8"),
        (["export", "nowhere.py:build", "--fmt", "ort"], 2, "no file"),
        (["export", "nowhere.at.all:build", "--fmt", "ort"], 2, "no Python module"),
        (["export", "vitae_t", "--fmt", "ort", "--img-size", "230"], 2, "240"),
        (["export", "shiftvit_t", "--fmt", "ort", "--opset", "99"], 2, "17 to 21"),
        (["export", "shiftvit_t", "--fmt", "ort", "--dynamic-batch", "1:²:3"], 2, "not MIN:OPT:MAX"),
        (["export", "shiftvit_t", "--fmt", "trt-rtx", "--sm", "8²"], 2, "not a list of compute capabilities"),
        (["export", "shiftvit_t", "--fmt", "ort", "--workspace", "64"], 2, "requires --fmt trt or trt-rtx"),
        (["export", "shiftvit_t", "--fmt", "ort", "--threads", "1000000000000"], 2, "at most 1024"),
        (["export", "shiftvit_cifar10", "--fmt", "ort", "--img-size", "1000000"], 2, "use a smaller input_size"),
        (["export", "shiftvit_t", "--fmt", "ort", "--out", ""], 2, "the path is empty"),
        (["export", "shiftvit_t", "--fmt", "ort", "--img-size", "224x"], 2, "such as 224 or 224x320"),
        (["export", "shiftvit_t", "--fmt", "ort", "--img-size", "1x2x3"], 2, "such as 224 or 224x320"),
        (["export", "shiftvit_t", "--fmt", "ort", "--img-size", "0x32"], 2, "must be at least 1"),
        (["run", "nowhere", ""], 2, "the path is empty"),
        (["verify", "nowhere"], 2, "no bundle at"),
        (["run", "nowhere", "photo.jpg"], 2, "no bundle at"),
        (["latency", "nowhere"], 2, "no bundle at"),
        (["list", "--family", "shiftvitt"], 2, "Did you mean 'shiftvit'"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], expected: int, message: str, one_line: Callable[[], str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path)] if arguments[0] == "export" else []
    assert status(*arguments, *out) == expected
    assert message in one_line()
    assert list(tmp_path.iterdir()) == []


NAMES = [
    "list",
    "export",
    "tune",
    "build",
    "verify",
    "run",
    "eval",
    "latency",
    "report",
    "optimize",
    "lint",
    "plan",
    "doctor",
    "completion",
]


def test_help_lists_every_command() -> None:
    assert [command.name for command in commands()] == NAMES
    assert re.findall(r"^    ([a-z]+)\b", command_line().format_help(), re.MULTILINE)[-len(NAMES) :] == NAMES


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert status() == 0
    assert capsys.readouterr().out == command_line().format_help()


@pytest.mark.parametrize(
    "words",
    [
        ("export", "shiftvit_t"),
        ("export", "shiftvit_t", "--fmt", "ort", "--precison", "fp16"),
        ("export", "shiftvit_t", "--fmt", "ort", "--batch", "many"),
    ],
)
def test_an_error_points_to_the_help_of_the_command(words: tuple[str, ...], one_line: Callable[[], str]) -> None:
    assert status(*words) == 2
    assert one_line().endswith("See: edgevit export --help")


@pytest.mark.parametrize("command", ["", *NAMES])
def test_help_loads_neither_torch_nor_a_runtime(command: str) -> None:
    code = (
        "import sys; from edgevit.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *([command] if command else []), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: edgevit" in done.stdout


TOY = """
from edgevit.cli.parser import Command


def add_arguments(parser):
    parser.add_argument("text")


def run(arguments, console):
    console.print(f"toy: {arguments.text}")
    console.finish({"text": arguments.text})
    return 0


COMMAND = Command(name="toy", help="repeat a text", add_arguments=add_arguments, run=run)
"""


@pytest.fixture
def add_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add a command as README says: one file in edgevit/cli and one line in COMMANDS."""

    def add(text: str) -> None:
        folder = tmp_path / "cli"
        folder.mkdir()
        (folder / "toy.py").write_text(text)
        monkeypatch.setattr(edgevit.cli, "__path__", [*edgevit.cli.__path__, str(folder)])
        monkeypatch.setattr(cli, "COMMANDS", (*COMMANDS, "toy"))
        monkeypatch.setitem(sys.modules, "edgevit.cli.toy", None)
        del sys.modules["edgevit.cli.toy"]  # so that the test imports it; monkeypatch removes it afterwards

    return add


def test_a_command_is_one_file_and_one_line(
    add_command: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(TOY)
    assert status("toy", "hello") == 0
    assert capsys.readouterr().out == "toy: hello\n"
    assert status("toy", "hello", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == {"text": "hello"}
    assert "repeat a text" in command_line().format_help()
    assert status("toi", "hello") == 2
    assert "Did you mean 'toy'" in capsys.readouterr().err


BUGS = {
    "an exception": ('raise KeyError("weights")', "KeyError: 'weights'", "KeyError: 'weights'"),
    "several lines": ('raise ValueError("one\\n  two")', "ValueError: one two", "  two"),
    "no message": ("assert False", "AssertionError: no message", "AssertionError"),
    "not an Exception": ('raise BaseException("panic")', "BaseException: panic", "BaseException: panic"),
}


@pytest.mark.parametrize("kind", BUGS)
def test_an_unforeseen_exception_is_one_line_with_a_log_file(
    kind: str,
    add_command: Callable[[str], None],
    one_line: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statement, expected, last_line = BUGS[kind]
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "cache"))
    add_command(TOY.replace('console.print(f"toy: {arguments.text}")', statement))
    assert status("toy", "hello", "--json", tmp_path / "result.json") == 70
    (log,) = (tmp_path / "cache" / "logs").iterdir()
    assert one_line() == f"edgevit: internal error: {expected}; full traceback: {log}"
    assert log.stem.endswith(f"-{os.getpid()}")  # two processes that fail in one second have two logs
    text = log.read_text()
    assert text.startswith("edgevit ")
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1] == last_line
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"error": f"internal error: {expected}", "exit_status": 70}


@pytest.mark.parametrize(
    ("statement", "expected", "message"),
    [
        ('raise ImportError("libx.so.1: failed to map segment from shared object")', 3, "out of memory while loading"),
        ('raise OSError("libgomp.so.1: cannot allocate memory in static TLS block")', 3, "out of memory while loading"),
        ('raise ImportError("libz.so: cannot open shared object file: No such file")', 3, "install it again"),
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 2, "out of memory; reduce"),
        ("raise MemoryError", 2, "out of memory; reduce"),
        ('raise ImportError("cannot import name x from edgevit.files")', 70, "internal error"),
    ],
)
def test_a_library_that_does_not_load_is_not_a_bug(
    statement: str,
    expected: int,
    message: str,
    add_command: Callable[[str], None],
    one_line: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path))
    add_command(TOY.replace('console.print(f"toy: {arguments.text}")', statement))
    assert status("toy", "hello") == expected
    assert message in one_line()


def test_out_of_memory_while_an_error_is_reported_is_one_line(
    add_command: Callable[[str], None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(console.Console, "fail", fail)
    add_command(TOY.replace('console.print(f"toy: {arguments.text}")', "raise MemoryError"))
    assert status("toy", "hello") == 2
    assert capfd.readouterr().err == "edgevit: out of memory\n"


@pytest.mark.parametrize(
    "words", [("run", "x/" * 3000, "a.png"), ("run", "x", "y", "--top", "1" * 5000), ("completion", "x" * 5000)]
)
def test_a_long_value_is_not_repeated_whole(words: tuple[str, ...], one_line: Callable[[], str]) -> None:
    assert status(*words) == 2
    assert len(one_line()) < 1200


@pytest.mark.parametrize("value", ["{[]: 1}", "-" * 20_000 + "1", "0" + "+0" * 100_000])
def test_a_value_that_python_cannot_read_is_a_usage_error(value: str, one_line: Callable[[], str]) -> None:
    assert status("export", "file.py:build", "--fmt", "ort", "--arg", f"depth={value}") == 2
    line = one_line()
    assert "argument --arg: depth has no value that Python can read: " in line and "--help" in line


def test_the_log_goes_to_the_temporary_folder_if_the_cache_is_not_writable(
    add_command: Callable[[str], None], one_line: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    add_command(TOY.replace('console.print(f"toy: {arguments.text}")', "raise KeyError(1)"))
    assert status("toy", "hello") == 70
    (log,) = tmp_path.glob("edgevit-log-*/*.log")
    assert one_line().endswith(f"full traceback: {log}")


def test_an_interrupt_is_not_reported_as_a_bug(add_command: Callable[[str], None], one_line: Callable[[], str]) -> None:
    add_command(TOY.replace('console.print(f"toy: {arguments.text}")', "raise KeyboardInterrupt"))
    assert status("toy", "hello") == 130
    assert "interrupted" in one_line()


@pytest.mark.parametrize(("words", "expected"), [(["list"], 0), (["lint", "missing.onnx"], 2)])
def test_a_process_ends_with_the_status_of_its_command_and_without_a_search_for_garbage(
    words: list[str], expected: int
) -> None:
    code = "import gc, sys; from edgevit.cli.main import run_process; status = run_process(); "
    code += "assert gc.get_freeze_count() > 0; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
