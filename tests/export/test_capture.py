"""Capture failures: each cause is named with its remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import EdgevitError, ExportError, MissingError, UsageError
from edgevit.export.capture import capture
from tests.helpers.quantization import load

IMAGE = torch.rand(2, 3, 8, 8)


class Call(nn.Module):
    """Calls a function on its input."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


def branch_and_print(x: torch.Tensor) -> torch.Tensor:
    sys.stderr.write("of the user\n")
    return branch_on_data(x)


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Result:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def branch_on_data(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


def size_from_data(x: torch.Tensor) -> torch.Tensor:
    return x[:, : int(x.sum().item())]


def import_missing_package(x: torch.Tensor) -> torch.Tensor:
    import package_that_is_missing  # type: ignore[import-not-found]

    return package_that_is_missing.f(x)  # type: ignore[no-any-return]


def wrong_shape(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.ones(5, 5)


def out_of_memory(_: torch.Tensor) -> torch.Tensor:
    raise MemoryError("Unable to allocate 3.5 TiB")


@dataclass(frozen=True)
class Failure:
    module: nn.Module
    error: type[EdgevitError]
    reason: str
    remedy: str
    dynamic_batch: bool = False


FAILURES = {
    "one channel": Failure(
        nn.Conv2d(1, 4, 3),
        ExportError,
        "takes 1 channels and the example has 3",
        r"--input-shape input=2,1,8,8, or .*"
        r"example_input=torch\.rand\(2,1,8,8\)",
    ),
    "four channels": Failure(
        nn.Conv2d(4, 4, 3),
        ExportError,
        "takes 4 channels and the example has 3",
        r"--input-shape input=2,4,8,8, or .*"
        r"example_input=torch\.rand\(2,4,8,8\)",
    ),
    "half": Failure(nn.Conv2d(3, 4, 3).half(), ExportError, "different dtypes", r"module\.float\(\)"),
    "bfloat16": Failure(nn.Conv2d(3, 4, 3).bfloat16(), ExportError, "different dtypes", r"module\.float\(\)"),
    "double": Failure(nn.Conv2d(3, 4, 3).double(), ExportError, "different dtypes", r"module\.float\(\)"),
    "integers": Failure(nn.Embedding(4, 3), ExportError, "takes integers", "dtype torch.int64"),
    "meta": Failure(
        nn.Conv2d(3, 4, 3, device="meta"), UsageError, "weight of Conv2d is on the meta", "load its weights"
    ),
    "lazy": Failure(nn.LazyConv2d(4, 3), UsageError, "is not initialized", "run the lazy module once"),
    "list": Failure(nn.ModuleList([nn.ReLU()]), UsageError, r"ModuleList has no forward\(\)", "nn.Sequential"),
    "package": Failure(Call(import_missing_package), MissingError, "needs the package package_that", "install it"),
    "memory": Failure(Call(out_of_memory), ExportError, "allocate 3.5 TiB", "reduce --img-size or --batch"),
    "shape bug": Failure(
        Call(wrong_shape), ExportError, r"shape \(2, 3, 8, 8\): .*\(test_capture.py:\d+\)", "correct forward"
    ),
    "inputs": Failure(
        TwoInputs(),
        ExportError,
        "missing 1 required positional argument: 'y'",
        r"--input-shape, once for each, or in Python example_input=\(",
    ),
    "branch": Failure(
        Call(branch_on_data), ExportError, r"\(test_capture.py:\d+\)", "torch.where instead of the branch"
    ),
    "size": Failure(Call(size_from_data), ExportError, "cannot trace Call", "use a fixed size"),
    "numpy": Failure(Call(lambda x: torch.from_numpy(x.numpy())), ExportError, "numpy", "PyTorch operators instead"),
    "object": Failure(Call(Result), ExportError, "not a known type", "return tensors, or tuples"),
    "number": Failure(
        Call(lambda x: (x * 2, 3)), ExportError, r"output 1 of the module is 3 \(int\)", "return tensors"
    ),
    "text": Failure(
        Call(lambda x: (x * 2, "a")), ExportError, r"output 1 of the module is 'a' \(str\)", "return tensors"
    ),
    "operator": Failure(
        Call(torch.linalg.svdvals), ExportError, "aten._linalg_svd has no ONNX form", "rewrite the module"
    ),
    "batch": Failure(
        Call(lambda x: x.view(2, -1)), ExportError, "the batch as a constant", "use -1", dynamic_batch=True
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_names_its_cause_and_remedy(name: str) -> None:
    failure = FAILURES[name]
    with pytest.raises(failure.error) as caught:
        capture(failure.module, (IMAGE,), dynamic_batch=failure.dynamic_batch)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(failure.reason, message)
    assert re.search(failure.remedy, message)


def test_a_program_of_torch_export_is_captured_as_it_is() -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3), (IMAGE,)).module()
    with pytest.raises(NotImplementedError):
        program.eval()
    assert dict(capture(program, (IMAGE,)).graph.operators) == {"Conv": 1}


def cast_automatically(x: torch.Tensor, **options: object) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, **options):  # type: ignore[arg-type]
        return nn.functional.conv2d(x, torch.ones(4, 3, 1, 1)).float()


def test_autocast_in_forward_is_refused() -> None:
    with pytest.raises(ExportError, match=r"enables torch.autocast \(torch.bfloat16 on cpu\).*--precision"):
        capture(Call(cast_automatically), [IMAGE])


def test_autocast_that_is_off_is_exported() -> None:
    assert "Conv" in capture(Call(lambda x: cast_automatically(x, enabled=False)), [IMAGE]).graph.operators


def test_the_batch_has_one_name_in_the_whole_graph() -> None:
    """A pass that removes the last node makes an inner value the output."""
    captured = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.zeros(2, 4),), dynamic_batch=True)
    values = [value for node in captured.graph.model.graph.all_nodes() for value in node.outputs]
    assert {str(value.shape[0]) for value in values if value.shape is not None} == {"batch"}


def test_a_failure_does_not_print_the_graph_up_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    """60 lines of it came before the message."""
    with pytest.raises(ExportError, match="torch.where instead of the branch"):
        capture(Call(branch_and_print), (IMAGE,))
    printed = capfd.readouterr()
    assert set(printed.err.splitlines()) == {"of the user"} and not printed.out


class ScaledByOwnName(nn.Module):
    """A parameter with the name of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.rand(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.x


def test_a_parameter_with_the_name_of_an_input_is_renamed() -> None:
    module = ScaledByOwnName()
    graph = capture(module, (IMAGE,)).graph
    assert [spec.name for spec in graph.inputs] == ["x"]
    assert list(graph.model.graph.initializers) == ["x_weight"]
    with torch.no_grad():
        assert np.allclose(load(graph)({"x": IMAGE.numpy()})["output"], module(IMAGE).numpy())
