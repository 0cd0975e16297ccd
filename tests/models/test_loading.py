"""Check how MODEL on the command line is loaded, and that failures of the user's code are one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edgevit.cli import main as cli
from edgevit.errors import ExportError, UsageError
from edgevit.models import checkpoints, loading


def write(folder: Path, code: str) -> str:
    """Write own.py with that code; return its MODEL argument."""
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
        loading.from_name(model, batch=int(size))


FAILING = {
    "a factory that exits": (
        "import sys\ndef build():\n    sys.exit(0)",
        "own.py:build\\(\\) failed: SystemExit: 0",
    ),
    "a file that exits": (
        "import sys\nsys.exit(0)",
        r"importing \S*own.py failed: SystemExit: 0 \(\S*own.py:2: sys.exit\(0\)\)$",
    ),
    "a factory whose error has two lines": (
        "def build():\n    raise ValueError('first line\\nsecond line')",
        r"own.py:build\(\) failed: ValueError: first line \(\S*own.py:2: raise ValueError",
    ),
    "a file whose error has two lines": (
        "raise ValueError('first line\\nsecond line')",
        r"failed: ValueError: first line \(",
    ),
    "a factory whose error has no text": (
        "def build():\n    assert False",
        r"own.py:build\(\) failed: AssertionError \(\S*own.py:2: assert False\)$",
    ),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_failure_of_the_users_code_is_one_line_with_its_place(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = FAILING[kind]
    model = write(tmp_path, code)
    with pytest.raises(ExportError, match=message):
        loading.from_name(model)
    assert cli.main(["export", model, "--fmt", "onnx", "--out", str(tmp_path)]) == ExportError.exit_status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_package_that_exits_is_an_export_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_package.py").write_text("import sys\nsys.exit()")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="importing leaving_package failed: SystemExit"):
        loading.from_name("leaving_package:build")


def test_the_current_folder_is_restored_after_a_script_changes_it(tmp_path: Path) -> None:
    model = write(tmp_path, f"import os\nfrom torch import nn\nos.chdir({str(tmp_path)!r})\nbuild = nn.Flatten")
    folder = Path.cwd()
    loading.from_name(model, img_size=2)
    assert Path.cwd() == folder


def test_the_example_is_on_the_cpu_whatever_the_default_device(tmp_path: Path) -> None:
    model = write(
        tmp_path,
        "import torch\n\ndef build():\n    torch.set_default_device('meta')\n    return torch.nn.Conv2d(3, 3, 1)",
    )
    try:
        made = loading.from_name(model, img_size=2)
    finally:
        torch.set_default_device(None)
    assert made.example[0].device.type == "cpu"


def test_a_file_named_like_a_package_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("from torch import nn\n\ndef build():\n    return nn.Flatten()")
    assert loading.from_name(f"{tmp_path / 'torch.py'}:build", img_size=2).name == "torch_build"
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize("name", [":build", ":", ".:build", " :build"])
def test_an_incomplete_name_lists_the_accepted_forms(name: str) -> None:
    with pytest.raises(UsageError, match=f"package.module:factory or file.py:factory, not '{name}'"):
        loading.from_name(name)


REGISTERED = """
import edgevit

def build():
    return edgevit.create_model("shiftvit_cifar10")
"""


def test_a_factory_of_a_registered_model_keeps_its_size_and_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REGISTERED)
    factory = f"{tmp_path / 'mine.py'}:build"
    assert loading.from_name(factory, img_size=32).example[0].shape == (1, 3, 32, 32)
    with pytest.raises(UsageError, match="32 x 32"):
        loading.from_name(factory, img_size=64)
    weights = checkpoints.included("shiftvit_cifar10.pth")
    assert loading.from_name(factory, weights=weights).origin.weights == str(weights)


@pytest.mark.parametrize("name", ["own.py", "own.py:"])
def test_a_file_without_a_function_lists_its_functions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("raise ValueError\ndef build():\n    pass\nclass Net:\n    pass\n")
    with pytest.raises(UsageError, match="own.py:FUNCTION; own.py has build, Net$"):
        loading.from_name(name)


def test_an_exported_program_is_loaded_as_it_is() -> None:
    program = torch.export.export(torch.nn.Conv2d(3, 4, 1).eval(), (torch.zeros(1, 3, 8, 8),))
    model = loading.from_module(program.module(), example_input=torch.zeros(1, 3, 8, 8))
    assert model.module(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 8, 8)


class FrozenNorm(torch.nn.Module):
    """A backbone whose train() freezes its norm and returns nothing, as mmdetection's do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # as the user's code
        super().train(mode)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.norm(x).mean((2, 3))
        return output


def test_a_module_whose_train_returns_nothing_is_loaded() -> None:
    module = FrozenNorm()
    model = loading.from_module(module, example_input=torch.zeros(1, 3, 8, 8))
    assert model.module is module and not module.training


class Caches(torch.nn.Module):
    """Keeps what it computed, as positional encodings do, and counts its calls."""

    calls: torch.Tensor
    names: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cache: torch.Tensor | None = None
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("names", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.ones(x.shape[-1])
        self.calls += 1
        self.names = self.names + 1
        return x * self.cache


def test_the_state_of_a_module_is_restored() -> None:
    module = Caches()
    x = torch.rand(1, 4, requires_grad=True)
    names, threads = module.names, torch.get_num_threads()
    with loading.preserve_state(module):
        torch.set_num_threads(threads + 1)
        with torch.inference_mode():
            module(x)
    assert torch.get_num_threads() == threads
    assert module.calls.item() == 0 and module.names is names and names.item() == 0
    assert module.cache is not None
    (x * module.cache).sum().backward()  # type: ignore[no-untyped-call]  # it refused tensors of inference mode


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module", [torch.nn.LazyBatchNorm1d(), torch.nn.BatchNorm1d(4, device="meta")])
def test_buffers_without_values_are_left_alone(module: torch.nn.Module) -> None:
    before = dict(module.named_buffers())
    with loading.preserve_state(module):
        pass
    assert all(module.get_buffer(name) is tensor for name, tensor in before.items())


TWO_INPUTS = """
import torch
from torch import nn

class Pair(nn.Module):
    def forward(self, left, right):
        return left + right.mean()

def build():
    return Pair()
"""


def test_a_factory_with_two_inputs_takes_their_shapes_by_name(tmp_path: Path) -> None:
    model = loading.from_name(write(tmp_path, TWO_INPUTS), input_shapes={"right": (1, 4), "left": (1, 2, 3)})
    assert model.input_names == ("left", "right")
    assert [tuple(tensor.shape) for tensor in model.example] == [(1, 2, 3), (1, 4)]
    with pytest.raises(UsageError, match="Did you mean 'right'"):
        loading.from_name(write(tmp_path, TWO_INPUTS), input_shapes={"rigth": (1, 4), "left": (1, 2, 3)})


@pytest.mark.parametrize("before", [1, 2])
def test_another_batch_is_that_of_an_export(before: int) -> None:
    inputs = (torch.rand(before, 3, 8, 8), torch.rand(before, 5))
    model = loading.from_module(torch.nn.Bilinear(5, 5, 2), example_input=inputs)
    changed = model.with_batch(4)
    assert (changed.batch, [tensor.shape[0] for tensor in changed.example]) == (4, [4, 4])
    assert all(torch.equal(rows[3], given[0]) for rows, given in zip(changed.example, inputs, strict=True))
