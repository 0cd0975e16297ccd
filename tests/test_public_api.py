"""The public Python API: its names, its parameters, and a light import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgevit
from edgevit.cli.main import command_line, main
from edgevit.cli.parser import subcommands
from edgevit.errors import EXIT_STATUSES, EdgevitError, UsageError
from edgevit.models.preprocessing import PreprocessingOptions

PARAMETERS = {
    "list_models": "family",
    "create_model": "name weights num_classes img_size options",
    "export": "model fmt precision calib eval max_drop out example_input weights num_classes img_size batch "
    "outputs dynamic_batch opset images threads sm trt_version verify latency",
    "load": "bundle threads cache_dir",
    "explain": "bundle model weights images limit_s",
    "tune": "model time_s fmt threads calib eval max_drop out example_input weights num_classes img_size batch images "
    "outputs",
}
# Options of `edgevit export` that `edgevit.export` lacks: a factory and inputs are passed as objects, the preprocessing
# as one, and a latency measurement and a builder's memory have their defaults.
ONLY_ON_THE_COMMAND_LINE = {
    "arg",
    "input_shape",
    "latency_time",
    "workspace",
    *(field.name for field in fields(PreprocessingOptions)),
}
OF_EVERY_COMMAND = {"help", "json", "quiet", "verbose"}


def test_the_public_names_are_these() -> None:
    assert sorted(edgevit.__all__) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_public_function_keeps_its_parameters(name: str) -> None:
    function = edgevit.export_model if name == "export" else getattr(edgevit, name)
    missing = set(PARAMETERS[name].split()) - set(inspect.signature(function).parameters)
    assert missing == set()
    assert function.__doc__


def test_the_overloads_of_export_have_all_its_options() -> None:
    """Type checkers read the overloads' options, Python those of the function itself."""
    (typed,) = (
        node
        for node in ast.walk(ast.parse(Path(edgevit.__file__).read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name == "_ExportOptions"
    )
    in_overloads = {
        field.target.id: ast.unparse(field.annotation)
        for field in typed.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    parameters = inspect.signature(edgevit.export_model).parameters
    assert in_overloads == {
        name: parameter.annotation for name, parameter in parameters.items() if name not in ("model", "fmt")
    }


def test_python_exports_with_the_options_of_the_command_line() -> None:
    options = {action.dest for action in dict(subcommands(command_line()))["export"]._actions} - OF_EVERY_COMMAND
    assert options - set(inspect.signature(edgevit.export_model).parameters) == ONLY_ON_THE_COMMAND_LINE


def test_python_tunes_with_the_options_of_the_command_line() -> None:
    options = {action.dest for action in dict(subcommands(command_line()))["tune"]._actions} - OF_EVERY_COMMAND
    only_there = options - set(inspect.signature(edgevit.tune).parameters)
    assert only_there == {"time", *ONLY_ON_THE_COMMAND_LINE} - {"latency_time", "workspace"}  # time_s in Python


def test_the_package_ships_its_types() -> None:
    assert (Path(edgevit.__file__).parent / "py.typed").exists()


def test_importing_edgevit_imports_no_package() -> None:
    code = (
        "import sys; before = set(sys.modules); import edgevit\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(str(new) if new - set(sys.stdlib_module_names) - {'edgevit'} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("function", [edgevit.export, edgevit.tune])
def test_calibration_data_of_another_type_is_a_usage_error(function: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calib is a folder of images, or arrays .* not a list"):
        function(nn.Linear(4, 2), example_input=torch.zeros(1, 4), calib=[torch.zeros(8, 4)], out=tmp_path)


@pytest.mark.parametrize(
    "call", ["list_models()", "create_model('deit_t')", "explain('bundle')", "export('deit_t')", "tune('deit_t')"]
)
def test_models_without_pytorch_are_one_error_with_the_remedy(call: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import edgevit\n"
        f"try: edgevit.{call}\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "MissingError PyTorch is not installed; install it: pip install 'edgevit[export]'\n"


def test_export_to_several_formats_and_load_return_arrays_by_name(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 5, 7)).train()
    images = torch.rand(1, 3, 8, 8)
    bundle, other = edgevit.export(module, fmt=("ort", "onnx"), name="My-net.1", example_input=images, out=tmp_path)
    assert module.training
    assert [each.path.name for each in (bundle, other)] == ["My-net.1-fp32-ort", "My-net.1-fp32-onnx"]
    assert bundle.path.parent == tmp_path
    assert repr(bundle) == str(bundle) == f"Bundle({str(bundle.path)!r})"
    with edgevit.load(bundle) as engine:
        (logits,) = engine.run({engine.inputs[0].name: images.numpy()}).values()
    assert logits.shape == (1, 7)
    assert torch.allclose(torch.from_numpy(logits), module.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"weights": "w.pth"}, {"num_classes": 3}, {"img_size": 64}, {"outputs": "features"}]
)
def test_options_of_a_name_are_rejected_for_a_module(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for a model given by name"):
        edgevit.export(nn.Identity(), example_input=torch.rand(1, 3, 8, 8), out=tmp_path, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("function", [edgevit.export, edgevit.tune])
def test_outputs_that_a_model_lacks_are_refused(function: Any) -> None:
    with pytest.raises(UsageError, match="shiftvit_t is a classifier; it outputs logits or features, not boxes"):
        function("shiftvit_t", outputs="boxes")


@pytest.mark.large
def test_outputs_are_those_of_the_command_line(tmp_path: Path) -> None:
    bundle = edgevit.export("mobileformer_26m", outputs="features", img_size=32, verify=False, out=tmp_path / "python")
    words = [
        "mobileformer_26m",
        "--fmt",
        "onnx",
        "--outputs",
        "features",
        "--img-size",
        "32",
        "--no-verify",
        "--no-latency",
    ]
    assert main(["export", *words, "--out", str(tmp_path / "command")]) == 0
    assert [output.name for output in bundle.manifest.outputs] == ["c2", "c3", "c4", "c5"]
    other = tmp_path / "command" / bundle.path.name
    assert (bundle.path / "model.onnx").read_bytes() == (other / "model.onnx").read_bytes()


def test_an_example_input_is_rejected_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="example_input is for a module"):
        edgevit.export("shiftvit_t", example_input=torch.rand(1, 3, 8, 8), out=tmp_path)


def _subclasses(error: type[EdgevitError]) -> set[type[EdgevitError]]:
    return {error}.union(*(_subclasses(child) for child in error.__subclasses__()))


def test_every_error_has_a_documented_exit_status() -> None:
    assert all(error.exit_status in EXIT_STATUSES for error in _subclasses(EdgevitError))
    assert 1 not in {error.exit_status for error in _subclasses(EdgevitError)}  # Python's own status
