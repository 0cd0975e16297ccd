"""The command line: what it prints, what it returns, and that every wrong request ends in one line."""

from __future__ import annotations

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
import torch
from PIL import Image
from torch import nn

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import command_line, main
from edgevit.models import registry
from edgevit.runtimes.registry import get_runtime
from tests.helpers.formats import ON_CPU

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
    """The exit status of a command, whichever way it leaves."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The only line on stderr."""

    def read() -> str:
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("edgevit: ")
        return lines[0]

    return read


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (["exprot", "shiftvit_t"], 2, "Did you mean 'export'"),
        (["export", "shiftvitt", "--fmt", "ort"], 2, "Did you mean 'shiftvit_t'"),
        (["export", "shiftvit_t", "--fmt", "onxruntime"], 2, "Did you mean 'onnxruntime'"),
        (["export", "shiftvit_t", "--fmt", "ort,ort"], 2, "stands twice"),
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
        (["export", "shiftvit_t", "--fmt", "ort", "--calib", "."], 2, "fp32 needs none"),
        (
            ["export", "shiftvit_t", "--fmt", "ort", "--int8", "--calib", ".", "--max-drop", "some"],
            2,
            "not a percentage",
        ),
        (
            ["export", "shiftvit_t", "--fmt", "ort", "--int8", "--calib", ".", "--max-drop", "150%"],
            2,
            "from 0 to below",
        ),
        (["export", "shiftvit_t", "--fmt", "openvino", "--fp16"], 9, "does not run fp16 here"),
        (["export", "shiftvit_t", "--fmt", "ort", "--calib", "."], 2, "fp32 needs none"),
        (["export", "nowhere.py:build", "--fmt", "ort"], 2, "no file"),
        (["export", "nowhere.at.all:build", "--fmt", "ort"], 2, "no Python module"),
        (["export", "vitae_t", "--fmt", "ort", "--img-size", "230"], 2, "240"),
        (["export", "shiftvit_t", "--fmt", "ort", "--opset", "99"], 2, "17 to 21"),
        (["export", "shiftvit_t", "--fmt", "ort", "--dynamic-batch", "1:²:3"], 2, "not MIN:OPT:MAX"),
        (["export", "shiftvit_t", "--fmt", "trt-rtx", "--sm", "8²"], 2, "not a list of compute capabilities"),
        (["export", "shiftvit_t", "--fmt", "ort", "--workspace", "64"], 2, "TensorRT's builders"),
        (["export", "shiftvit_t", "--fmt", "ort", "--threads", "1000000000000"], 2, "at most 1024"),
        (["export", "shiftvit_cifar10", "--fmt", "ort", "--img-size", "1000000"], 2, "out of memory"),
        (["export", "shiftvit_t", "--fmt", "ort", "--out", ""], 2, "the path is empty"),
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


def test_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registry.list_models())
    assert status("list", "--family", "shiftvit", "--json", "-") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == registry.list_models("shiftvit")


def test_export_ends_with_the_next_command_and_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user's own factory, through every format on the CPU, with everything that an export does."""
    (tmp_path / "mine.py").write_text(USER_MODEL)
    json_path = tmp_path / "report.json"
    arguments = ["export", f"{tmp_path / 'mine.py'}:build", "--fmt", ",".join(ON_CPU), "--img-size", "32"]
    assert status(*arguments, "--out", tmp_path / "out", "--json", json_path) == 0
    printed = capsys.readouterr().out
    for fmt in ON_CPU:
        assert Bundle.open(tmp_path / "out" / f"mine_build-fp32-{fmt}").manifest["latency"]
    report = json.loads(json_path.read_text())
    assert report["parity"]["passed"] is True
    assert [row["name"] for row in report["latency"]] == ["torch", *ON_CPU]
    assert "peak MB" not in printed  # nothing ran alone
    command = printed.strip().splitlines()[-1]
    assert command == report["next_command"]
    assert status(*shlex.split(command)[1:]) == 0
    assert "class " in capsys.readouterr().out  # without class names, a class is a number


def test_what_answers_no_classes_is_not_told_to_run_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maps.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Conv2d(3, 2, 3)\n")
    arguments = ["export", f"{tmp_path / 'maps.py'}:build", "--fmt", "ort", "--img-size", "16", "--no-latency"]
    assert status(*arguments, "--out", tmp_path) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[:2] == ["edgevit", "verify"]
    assert status(*command[1:]) == 0


def test_what_the_users_code_prints_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = USER_MODEL.replace("        return self.head", "        print('traced')\n        return self.head")
    (tmp_path / "own.py").write_text(text.replace("    return Tiny()", "    print('made')\n    return Tiny()"))
    options = ("--fmt", "ort", "--img-size", "8", "--no-latency", "--out", tmp_path)
    assert status("export", f"{tmp_path / 'own.py'}:build", *options, "--json", "-") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["model"] == "own_build"
    assert "made" in printed.err and "traced" in printed.err


def test_brackets_and_blanks_in_a_path_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b [v1]" / "[" / "x]"
    assert status("export", "shiftvit_cifar10", "--fmt", "ort", "--no-latency", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "[v1]" in printed.replace("\n", "")
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[2] == str(out / "shiftvit_cifar10-fp32-ort")
    assert status(*command[1:]) == 0
    assert "cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factory", "expected", "message"),
    [("broken", 4, "no such checkpoint"), ("number", 2, "not a torch.nn.Module"), ("bild", 2, "no function 'bild'")],
)
def test_a_factory_that_does_not_deliver(
    factory: str, expected: int, message: str, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    assert status("export", f"{tmp_path / 'mine.py'}:{factory}", "--fmt", "ort", "--out", tmp_path / "out") == expected
    assert message in one_line()


def test_a_file_with_a_mistake_in_it(tmp_path: Path, one_line: Callable[[], str]) -> None:
    (tmp_path / "mistake.py").write_text("def build(:")
    assert status("export", f"{tmp_path / 'mistake.py'}:build", "--fmt", "ort", "--out", tmp_path / "out") == 4
    assert "SyntaxError" in one_line()


def test_build_on_the_device_from_the_onnx_inside(
    made: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(made("onnx").path, tmp_path / "shiftvit_cifar10-fp32-onnx")
    assert status("build", source, "--fmt", "openvino") == 0
    built = Bundle.open(tmp_path / "shiftvit_cifar10-fp32-openvino")
    assert built.fmt == "openvino"
    assert built.manifest["parity"]["passed"] is True
    assert status(*capsys.readouterr().out.strip().splitlines()[-1].split()[1:], "--duration", "0.1") == 0
    before = source.stat().st_ino
    assert status("build", source) == 0  # for its own format it takes its place
    assert source.stat().st_ino != before
    assert len(list(tmp_path.iterdir())) == 2


def test_verify(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("verify", bundle.path) == 0
    assert capsys.readouterr().out.strip().endswith("parity passed")
    assert status("verify", bundle.path, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_verify_on_other_photos_asks_pytorch(bundle: Bundle, tmp_path: Path) -> None:
    Image.effect_noise((40, 50), 90).save(tmp_path / "noise.png")
    assert status("verify", bundle.path, "--images", tmp_path) == 0


def test_verify_notices_another_answer(own_bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Reference answers of another model, with hashes made to fit: only the comparison itself can notice."""
    from edgevit.bundles import store
    from edgevit.bundles.bundle import REFERENCE
    from edgevit.types import Reference

    other = [
        Reference(kind=r.kind, inputs=r.inputs, outputs={name: array[:, ::-1] for name, array in r.outputs.items()})
        for r in own_bundle.references()
    ]
    store.write_references(own_bundle.path / REFERENCE, other)
    store.write_manifest(own_bundle.path, {k: v for k, v in own_bundle.manifest.items() if k != "files"})
    assert status("verify", own_bundle.path, "--json", tmp_path / "verdict.json") == 6
    assert "parity failed" in capsys.readouterr().err
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["exit_status"] == 6
    assert verdict["parity"]["passed"] is False


def test_run_answers_a_cat(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("run", bundle.path, PHOTO, "--top", "2") == 0
    printed = capsys.readouterr().out
    assert "cat" in printed.splitlines()[1]
    assert status("run", bundle.path, PHOTO.parent, "--top", "1", "--json", "-") == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert answers[0]["top"][0]["name"] == "cat"
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("outputs", "bias", "expected", "message"),
    [(1, 0.0, 2, "needs an image classifier"), (2, float("nan"), 6, "contain NaN or infinity")],
)
def test_run_answers_no_class_where_there_is_none(
    outputs: int, bias: float, expected: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only number of a regression was a class with 100 %, and NaN a traceback behind --json."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))
    nn.init.constant_(module[1].bias, bias)  # type: ignore[arg-type]  # a Linear has one
    made = edgevit.export(module, fmt="ort", example_input=torch.zeros(1, 3, 2, 2), verify=False, out=tmp_path)
    capsys.readouterr()
    assert status("run", made.path, PHOTO, "--json", tmp_path / "answers.json") == expected
    assert message in capsys.readouterr().err


def test_run_refuses_what_is_no_photo(bundle: Bundle, one_line: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    assert status("run", bundle.path, tmp_path / "text.jpg") == 2
    assert "text.jpg" in one_line()
    assert status("run", bundle.path, PHOTO, "--top", "0") == 2


def test_latency_side_by_side(
    made: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.json"
    paths = [made(fmt).path for fmt in ("ort", "openvino")]
    arguments: list[str | Path] = [
        *paths,
        "--duration",
        "0.5",
        "--threads",
        "1",
        "--against",
        "torch,onnx",
        "--json",
        out,
    ]
    assert status("latency", *arguments) == 0
    rows = json.loads(out.read_text())["latency"]
    assert [row["name"] for row in rows] == [paths[0].name, paths[1].name, "torch", "onnx"]
    for row in rows:
        assert row["runs"] >= 100
        assert len(row["evidence"]["samples_ms"]) == row["runs"]
        assert row["p50_ms"] <= row["p90_ms"]
    peaks = [row["peak_memory_mb"] for row in rows]
    assert all(20 < peak < 2000 for peak in peaks[:2])  # each in a process of its own
    assert peaks[2:] == [None, None]
    printed = capsys.readouterr().out
    assert "images/s" in printed and "peak MB" in printed


def test_latency_against_an_unknown_name(bundle: Bundle, one_line: Callable[[], str]) -> None:
    assert status("latency", bundle.path, "--against", "tensorflow") == 2
    assert "unknown format 'tensorflow'" in one_line()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("doctor", "--json", "-") == 0
    assert set(json.loads(capsys.readouterr().out)["runtimes"]) >= set(ON_CPU)
    if get_runtime("trt").version() is None:
        assert status("doctor") == 0
        assert "pip install 'edgevit[trt]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        ("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        ("tensorrt", "__version__ = '8.5.2.2'", "JetPack 5"),
        ("tensorrt_rtx", "raise ImportError('libtensorrt_rtx.so.1: cannot open')", "libtensorrt_rtx.so.1"),
    ],
)
def test_doctor_tells_of_a_runtime_that_is_there_and_does_not_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    line: str,
    words: str,
) -> None:
    (tmp_path / f"{module}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    del sys.modules[module]  # imported anew, and forgotten after the test
    assert status("doctor", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    fmt = "trt" if module == "tensorrt" else "trt-rtx"
    assert found["runtimes"][fmt] is None
    assert words in found["unusable"][fmt]


def test_json_that_cannot_be_written(one_line: Callable[[], str], tmp_path: Path) -> None:
    """Said before the work, which would have been for nothing."""
    arguments = ["export", "shiftvit_cifar10", "--fmt", "ort", "--out", str(tmp_path / "out")]
    assert status(*arguments, "--json", tmp_path / "no" / "folder.json") == 2
    assert "--json" in one_line()
    assert status(*arguments, "--json", tmp_path) == 2
    assert "--json" in one_line()
    assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_finished_leaves_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("as it was")
    (tmp_path / "kept.json.part").mkdir()  # where it is written first
    assert status("list", "--json", kept) == 2
    assert kept.read_text() == "as it was"
    assert "choose another path for --json" in capsys.readouterr().err


PRINT = """
import sys
from edgevit.cli.console import prepare_streams

prepare_streams()
for path in sys.argv[1:]:
    print(path)
"""


def cli(command: str) -> subprocess.CompletedProcess[str]:
    """A shell's command line, with `edgevit` as it is here."""
    line = command.replace("edgevit", f"{shlex.quote(sys.executable)} -m edgevit", 1)
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["edgevit list > /dev/full", "edgevit list --json - > /dev/full"])
def test_output_to_a_full_disk_is_one_line(command: str) -> None:
    run = cli(command)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["edgevit: cannot read or write: No space left on device"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_stdout_has_no_letters_for_is_printed_all_the_same(encoding: str, tmp_path: Path) -> None:
    """A traceback with status 1 came of it, behind an export that was done."""
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


def test_a_folder_that_is_gone_is_said_and_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[[], str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert status("export", "shiftvit_cifar10", "--fmt", "ort") == 2
    assert "the current folder has been deleted" in one_line()


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_failure(closed: str, tmp_path: Path) -> None:
    """Nor does a file that is opened later get the stream's number, and its output."""
    run = cli(f"edgevit list --json {shlex.quote(str(tmp_path / 'models.json'))} {closed}")
    assert (run.returncode, run.stderr) == (0, "")
    assert len(json.loads((tmp_path / "models.json").read_text())["models"]) == len(registry.list_models())


def test_a_photo_that_pillow_wonders_about_is_read_without_a_word(
    made: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff")
    assert status("run", made("ort").path, tmp_path / "odd.jpg") == 0
    assert capsys.readouterr().err == ""


def test_a_reader_who_has_enough_ends_it_in_silence() -> None:
    run = cli("edgevit list --json - | true")
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, "")


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


def test_a_stop_that_the_model_swallows_comes_at_the_next_stage(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(SWALLOWS)
    run = cli(f"edgevit export {tmp_path / 'deaf.py'}:build --fmt ort --img-size 16 --out {tmp_path / 'out'}")
    assert run.returncode == 128 + signal.SIGTERM
    assert run.stderr.count("edgevit: stopped by SIGTERM; nothing is left behind") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stop_is_said() -> None:
    line = "edgevit export shiftvit_cifar10 --fmt ort --out /nonexistent & sleep 1; kill -TERM $!; wait $!"
    run = cli(line)
    assert run.returncode == 128 + signal.SIGTERM
    assert "edgevit: stopped by SIGTERM; nothing is left behind" in run.stderr


COMMANDS = ["list", "export", "build", "verify", "run", "eval", "latency", "lint", "plan", "doctor"]


def test_the_commands_are_known_here() -> None:
    assert all(f"    {command} " in command_line().format_help() for command in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
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
