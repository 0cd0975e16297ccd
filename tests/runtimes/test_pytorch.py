"""PyTorch as an engine: its modes name the device that computes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from edgevit.errors import MissingError, UsageError
from edgevit.runtimes.pytorch import TORCH_CPU, TorchEngine, TorchMode, torch_mode
from edgevit.types import TensorSpec

SPECS = [TensorSpec("x", "float32", (1, 3))], [TensorSpec("y", "float32", (1, 2))]


def test_every_mode_names_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_mode("torch") == TORCH_CPU and TORCH_CPU.title == "torch (CPU)"
    assert torch_mode("torch-compile").title == "torch.compile (CPU)"
    with pytest.raises(MissingError, match="leave torch-cuda out"):
        torch_mode("torch-cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_mode("torch-cuda").title == "torch (CUDA)"
    assert torch_mode("torch-compile").title == "torch.compile (CUDA)"
    with pytest.raises(UsageError, match="torch-tpu"):
        torch_mode("torch-tpu")


def test_the_eager_engine_computes_on_the_cpu_in_fp32() -> None:
    module = torch.nn.Linear(3, 2)
    engine = TorchEngine(module, *SPECS)
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(engine.run({"x": x})["y"], module(torch.from_numpy(x)).detach().numpy())
    assert dict(engine.executed_precision().layers) == {"fp32": 1} and engine.conditions == {}


@pytest.mark.large  # the compiler takes 20 s
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_module_computes_the_same() -> None:
    module, x = torch.nn.Linear(3, 2), {"x": np.ones((1, 3), np.float32)}
    compiled = TorchEngine(module, *SPECS, mode=TorchMode(compiled=True))
    compiled.compile(x)
    np.testing.assert_allclose(compiled.run(x)["y"], TorchEngine(module, *SPECS).run(x)["y"], rtol=1e-5)


def test_a_module_that_cannot_be_compiled_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_module: object) -> object:
        def call(*_inputs: object) -> object:
            raise RuntimeError("InvalidCxxCompiler: no C++ compiler\nmore")

        return call

    monkeypatch.setattr(torch, "compile", fail)  # the real one takes seconds to fail
    engine = TorchEngine(torch.nn.Linear(3, 2), *SPECS, mode=TorchMode(compiled=True))
    with pytest.raises(MissingError, match=r"InvalidCxxCompiler: no C\+\+ compiler\); install a C\+\+ compiler"):
        engine.compile({"x": np.ones((1, 3), np.float32)})
