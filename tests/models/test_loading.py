"""What stands on the command line for a model, and what the user's own code does when it is asked for one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edgevit.cli import main as cli
from edgevit.errors import ExportError, UsageError
from edgevit.models import checkpoints
from edgevit.models import loading as subject


def write(folder: Path, code: str) -> str:
    """A file of the user's own with that code, as MODEL."""
    (folder / "own.py").write_text(code)
    return f"{folder / 'own.py'}:build"


@pytest.mark.parametrize("size", ["0", "-3"])
@pytest.mark.parametrize("model", ["shiftvit_cifar10", "deit_t", "own.py:build"])
def test_a_size_below_one_is_refused(
    model: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "from torch import nn\ndef build():\n    return nn.Conv2d(3, 4, 1)")
    assert cli.main(["export", model, "--fmt", "onnx", "--img-size", size]) == UsageError.exit_status
    assert capsys.readouterr().err == f"edgevit: img_size must be at least 1, not {size}\n"
    with pytest.raises(UsageError, match="batch must be at least 1"):
        subject.from_name(model, batch=int(size))


FAILING = {
    "a factory that leaves the program": (
        "import sys\ndef build():\n    sys.exit(0)",
        "own.py:build\\(\\) failed: SystemExit: 0",
    ),
    "a file that leaves the program": ("import sys\nsys.exit(0)", "own.py failed as it was imported: SystemExit: 0"),
    "a factory that says much": (
        "def build():\n    raise ValueError('first line\\nsecond line')",
        "own.py:build\\(\\) failed: ValueError: first line$",
    ),
    "a file that says much": ("raise ValueError('first line\\nsecond line')", "imported: ValueError: first line$"),
    "a factory that says nothing": ("def build():\n    assert False", "own.py:build\\(\\) failed: AssertionError$"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_code_of_the_users_that_fails_is_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = FAILING[kind]
    model = write(tmp_path, code)
    with pytest.raises(ExportError, match=message):
        subject.from_name(model)
    assert cli.main(["export", model, "--fmt", "onnx", "--out", str(tmp_path)]) == ExportError.exit_status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_module_that_leaves_the_program_is_an_export_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_package.py").write_text("import sys\nsys.exit()")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="leaving_package failed as it was imported: SystemExit"):
        subject.from_name("leaving_package:build")


def test_a_script_that_goes_elsewhere_takes_nobody_along(tmp_path: Path) -> None:
    """Its bundle was written to another folder than --out."""
    model = write(tmp_path, f"import os\nfrom torch import nn\nos.chdir({str(tmp_path)!r})\nbuild = nn.Flatten")
    folder = Path.cwd()
    subject.from_name(model, img_size=2)
    assert Path.cwd() == folder


def test_a_device_that_the_users_code_chooses_is_not_the_examples(tmp_path: Path) -> None:
    model = write(
        tmp_path,
        "import torch\n\ndef build():\n    torch.set_default_device('meta')\n    return torch.nn.Conv2d(3, 3, 1)",
    )
    try:
        made = subject.from_name(model, img_size=2)
    finally:
        torch.set_default_device(None)
    assert made.example[0].device.type == "cpu"


def test_a_file_that_is_called_like_a_package_does_not_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("from torch import nn\n\ndef build():\n    return nn.Flatten()")
    assert subject.from_name(f"{tmp_path / 'torch.py'}:build", img_size=2).name == "torch_build"
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize("name", [":build", ":", ".:build", " :build", "own.py:", "torch:"])
def test_half_a_name_says_what_is_wanted(name: str) -> None:
    with pytest.raises(UsageError, match=f"package.module:factory or file.py:factory, not '{name}'"):
        subject.from_name(name)


REGISTERED = """
import edgevit

def build():
    return edgevit.create_model("shiftvit_cifar10")
"""


def test_a_factory_that_makes_a_registered_model_keeps_its_size_and_its_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REGISTERED)
    factory = f"{tmp_path / 'mine.py'}:build"
    assert subject.from_name(factory, img_size=32).example[0].shape == (1, 3, 32, 32)
    with pytest.raises(UsageError, match="32 x 32"):
        subject.from_name(factory, img_size=64)
    weights = checkpoints.included("shiftvit_cifar10.pth")
    assert subject.from_name(factory, weights=weights).origin["weights"] == str(weights)
