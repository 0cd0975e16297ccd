"""PyTorch as an engine: its modes name the device that computes."""

from __future__ import annotations

import contextlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgevit.errors import MissingError, UsageError
from edgevit.latency import roofline
from edgevit.latency.candidate import candidate_from_engine
from edgevit.latency.roofline import device_copy_rate
from edgevit.runtimes import pytorch
from edgevit.runtimes.base import GRAPH_OPERATIONS
from edgevit.runtimes.pytorch import CUDA, TORCH_CPU, TorchEngine, TorchMode, module_bytes, torch_mode
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


class FakeEvent:
    """A CUDA event on a GPU whose clock advances by 1.5 ms between two events."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def record(self) -> None:
        self._log.append("record")

    def synchronize(self) -> None:
        self._log.append("synchronize")

    def elapsed_time(self, _end: FakeEvent) -> float:
        self._log.append("elapsed")
        return 1.5


class OnFakeGpu(torch.nn.Linear):
    """A layer that stays on the CPU when it is moved to the GPU, and notes when it runs."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(3, 2)
        self._log = log

    def to(self, *_args: object, **_options: object) -> OnFakeGpu:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._log.append("forward")
        return super().forward(x)


def fake_gpu(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    """Replace PyTorch by one whose CUDA tensors are on the CPU."""

    class FakeTorch:
        cuda = SimpleNamespace(
            Event=lambda enable_timing: FakeEvent(log) if enable_timing else None,
            synchronize=lambda: log.append("synchronize"),
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: log.append("replay")),
            graph=lambda _graph: contextlib.nullcontext(),
            get_device_properties=lambda _device: SimpleNamespace(name="GPU", uuid="1", multi_processor_count=8),
        )

        def __getattr__(self, name: str) -> object:
            create = getattr(torch, name)
            if name not in ("tensor", "ones"):
                return create
            return lambda *args, **options: create(*args, **{**options, "device": "cpu"})

    monkeypatch.setattr(pytorch, "load_torch", FakeTorch)


def test_on_cuda_two_events_time_the_inference_and_are_read_outside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fake_gpu(monkeypatch, log)
    engine = TorchEngine(OnFakeGpu(log), *SPECS, mode=TorchMode(CUDA))
    assert engine.compute_ms() is None and log == []  # nothing has run
    x = {"x": np.ones((1, 3), np.float32)}
    engine.run(x)
    assert log == ["record", "forward", "record"]
    assert engine.compute_ms() == 1.5 and log[3:] == ["synchronize", "elapsed"]
    candidate = candidate_from_engine("torch (CUDA)", engine, x)
    assert candidate.compute_ms is not None and candidate.compute_ms() == 1.5 and candidate.uses_gpu
    assert candidate_from_engine("torch (CPU)", TorchEngine(torch.nn.Linear(3, 2), *SPECS), x).compute_ms is None


def test_the_memory_of_the_gpu_is_copied_for_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fake_gpu(monkeypatch, log)
    engine = TorchEngine(OnFakeGpu(log), *SPECS, mode=TorchMode(CUDA))
    monkeypatch.setattr(roofline, "_run_s", lambda copies: copies.run() or 1.0)
    monkeypatch.setattr(roofline, "_SHAPE_S", 0.0)
    assert device_copy_rate(engine, 1 << 20) == GRAPH_OPERATIONS * (1 << 20)  # half read, half written
    assert log[:3] == ["synchronize", "replay", "synchronize"]  # the kernel is loaded before the graph is recorded
    assert device_copy_rate(TorchEngine(torch.nn.Linear(3, 2), *SPECS), 1 << 20) is None  # the host's


def test_products_of_a_gpu_run_in_the_precision_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    fake_gpu(monkeypatch, [])
    engine = TorchEngine(OnFakeGpu([]), *SPECS, mode=TorchMode(CUDA))
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    monkeypatch.setattr(engine, "_repeated", lambda _: allowed.append(settings.allow_tf32))
    for precision in ("fp32", "tf32", "int8"):
        engine.matmul((2, 3, 4), precision)
    assert allowed == [False, True]  # int8 has no product
    assert settings.allow_tf32 == before
    assert TorchEngine(torch.nn.Linear(3, 2), *SPECS).matmul((2, 3, 4), "tf32") is None  # on the processor


def test_shared_weights_count_once() -> None:
    layer = torch.nn.Linear(3, 2)
    assert module_bytes(torch.nn.Sequential(layer, layer, torch.nn.BatchNorm1d(2))) == 4 * (6 + 2 + 2 + 2 + 2 + 2) + 8
