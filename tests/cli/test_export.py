"""`edgevit export`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.images import sample_images
from tests.helpers.cli import USER_MODEL, last_line, status
from tests.helpers.formats import ON_CPU


def test_export_ends_with_the_next_command_and_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user's own factory, through every format on the CPU, with everything that an export does."""
    (tmp_path / "mine.py").write_text(USER_MODEL)
    json_path = tmp_path / "report.json"
    arguments = ["export", f"{tmp_path / 'mine.py'}:build", "--fmt", ",".join(ON_CPU), "--img-size", "32"]
    assert status(*arguments, "--latency-time", "10", "--out", tmp_path / "out", "--json", json_path) == 0
    printed = capsys.readouterr().out
    for fmt in ON_CPU:
        assert Bundle.open(tmp_path / "out" / f"mine_build-fp32-{fmt}").manifest.latency
    report = json.loads(json_path.read_text())
    assert report["parity"]["passed"] is True
    assert [row["name"] for row in report["latency"]] == ["torch (CPU)", *ON_CPU]
    assert "host MB" not in printed  # nothing ran alone
    command = printed.strip().splitlines()[-1]
    assert command == report["next_command"]
    assert status(*shlex.split(command)[1:]) == 0
    assert "class " in capsys.readouterr().out  # without class names, a class is a number


@pytest.mark.parametrize("formats", ["auto,ort", "ort,Auto"])
def test_auto_cannot_be_combined(formats: str, one_line: Callable[[], str]) -> None:
    """It was an unknown format."""
    assert status("export", "shiftvit_cifar10", "--fmt", formats) == 2
    assert "--fmt auto cannot be combined with other formats; export ort in a separate command" in one_line()


def test_export_suggests_verify_for_a_model_that_is_not_a_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the arguments, the preprocessing and the class names that the command line gives."""
    (tmp_path / "maps.py").write_text("from torch import nn\n\n\ndef build(maps):\n    return nn.Conv2d(3, maps, 3)\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    arguments = ["export", f"{tmp_path / 'maps.py'}:build", "--fmt", "ort", "--img-size", "16", "--no-latency"]
    settings: list[str | Path] = [
        "--arg",
        "maps=2",
        "--input-range=-1:1",
        "--crop-mode",
        "squash",
        "--crop-pct",
        "0.8",
        "--interpolation",
        "bilinear",
        "--classes",
        tmp_path / "names.txt",
    ]
    assert status(*arguments, *settings, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "preprocessing as given: bilinear resize to 20x20 (squash), crop to 16x16" in " ".join(printed.split())
    bundle = Bundle.open(tmp_path / "maps_build-fp32-ort")
    assert bundle.manifest.model.preprocessing_source == "given"
    assert (bundle.preprocessing.mean, bundle.preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    assert bundle.classes == ("cat", "dog")
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[:2] == ["edgevit", "verify"]
    assert status(*command[1:]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arg", "depth=1"], "got an unexpected keyword argument 'depth'; give its arguments as --arg NAME=VALUE"),
        (["--arg", "depth"], "'depth' is not NAME=VALUE"),
        (["--mean", "1,x,3"], "'1,x,3' is not a number per channel"),
        (["--mean", "123,117,104"], "add --input-range 0:255"),
        (["--input-range", "5"], "'5' is not LOW:HIGH"),
        (["--edges", "800"], "'800' is not SHORTEST:LONGEST"),
        (["--classes", "nowhere.txt"], "cannot read the class names in nowhere.txt"),
    ],
)
def test_wrong_settings_are_one_line(
    options: list[str], words: str, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    arguments = ["export", f"{tmp_path / 'mine.py'}:build", "--fmt", "ort", "--img-size", "8", "--no-latency"]
    assert status(*arguments, "--out", tmp_path / "out", *options) == 2
    assert words in one_line()


def test_class_names_have_to_be_as_many_as_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    arguments = ["export", f"{tmp_path / 'mine.py'}:build", "--fmt", "ort", "--img-size", "8", "--no-latency"]
    assert status(*arguments, "--classes", tmp_path / "names.txt", "--out", tmp_path / "out") == 2
    assert "2 class names for 5 classes" in last_line(capsys)


def test_prints_of_the_users_code_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = USER_MODEL.replace("        return self.head", "        print('traced')\n        return self.head")
    (tmp_path / "own.py").write_text(text.replace("    return Tiny()", "    print('made')\n    return Tiny()"))
    options = ("--fmt", "ort", "--img-size", "8", "--no-latency", "--out", tmp_path)
    assert status("export", f"{tmp_path / 'own.py'}:build", *options, "--json", "-") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["model"] == "own_build"
    assert "made" in printed.err and "traced" in printed.err


def test_brackets_and_spaces_in_a_path_are_printed_unchanged(
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
def test_a_failing_factory_is_reported_in_one_line(
    factory: str, expected: int, message: str, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    assert status("export", f"{tmp_path / 'mine.py'}:{factory}", "--fmt", "ort", "--out", tmp_path / "out") == expected
    assert message in one_line()


def test_a_syntax_error_in_the_users_file_is_reported(tmp_path: Path, one_line: Callable[[], str]) -> None:
    (tmp_path / "mistake.py").write_text("def build(:")
    assert status("export", f"{tmp_path / 'mistake.py'}:build", "--fmt", "ort", "--out", tmp_path / "out") == 4
    assert "SyntaxError" in one_line()


def test_a_deleted_current_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[[], str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert status("export", "shiftvit_cifar10", "--fmt", "ort") == 2
    assert "the current folder has been deleted" in one_line()


def test_strict_refuses_a_photo_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "torn.png").write_bytes(b"torn")
    shutil.copy(sample_images()[0], tmp_path / "photos")
    options = ("--fmt", "ort", "--img-size", "8", "--images", tmp_path / "photos", "--strict", "--out", tmp_path)
    assert status("export", f"{tmp_path / 'mine.py'}:build", *options) == 2
    assert "torn.png" in last_line(capsys)


def test_the_remedy_for_other_channels_works(tmp_path: Path, one_line: Callable[[], str]) -> None:
    (tmp_path / "gray.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Conv2d(1, 2, 3)\n")
    command = ("export", f"{tmp_path / 'gray.py'}:build", "--fmt", "onnx", "--no-latency", "--out", tmp_path)
    assert status(*command, "--img-size", "8") == 4
    remedy = re.search(r"--input-shape \S+?(?=, or)", one_line())
    assert remedy is not None
    assert status(*command, *remedy[0].split()) == 0


@pytest.mark.parametrize(("size", "shape"), [("16", [1, 3, 16, 16]), ("16x24", [1, 3, 16, 24])])
def test_the_image_size_is_a_number_or_height_x_width(size: str, shape: list[int], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    options = ("--fmt", "ort", "--img-size", size, "--no-latency", "--out", tmp_path / "out")
    assert status("export", f"{tmp_path / 'mine.py'}:build", *options) == 0
    manifest = json.loads((tmp_path / "out" / "mine_build-fp32-ort" / "manifest.json").read_text())
    assert manifest["inputs"][0]["shape"] == shape


def test_verbose_output_begins_with_the_time_of_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading PyTorch and the model is most of a short export, and no stage of the pipeline."""
    (tmp_path / "user.py").write_text(USER_MODEL)
    arguments = ("export", f"{tmp_path / 'user.py'}:build", "--img-size", "32", "--fmt", "onnx", "--out", tmp_path)
    assert status(*arguments, "--no-verify", "--no-latency", "-v") == 0
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  import packages, create the model: \d+\.\d s", first)
    assert second.startswith("  ")
