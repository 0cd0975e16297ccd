"""CUDA driver bindings, CUDA graphs and NVML on a real GPU; skipped on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgevit.errors import BuildError
from edgevit.latency.sampling.nvml import gpus_with, nvml_session
from edgevit.runtimes.base import GPU_UUID
from edgevit.runtimes.pytorch import TorchEngine, torch_mode
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.types import Array, TensorSpec

pytestmark = pytest.mark.skipif(not cuda.has_gpu(), reason="no NVIDIA GPU")

SIZE = 1 << 20  # values of float32


class Copies:
    """Pinned memory whose content goes to the device and back into other pinned memory."""

    def __init__(self, device: cuda.Device) -> None:
        self._device = device
        self._memory = [cuda_graph.PinnedMemory(device, 4 * SIZE) for _ in range(2)]
        self._buffer = device.allocate(4 * SIZE)
        self.source, self.target = (memory.array((SIZE,), "float32") for memory in self._memory)

    def enqueue(self) -> None:
        self._buffer.upload(self.source)
        self._buffer.download(self.target)

    def free(self) -> None:
        self._buffer.free()
        for memory in self._memory:
            memory.free()


@pytest.fixture
def device() -> Iterator[cuda.Device]:
    with cuda.Device() as device:
        yield device


@pytest.fixture
def copies(device: cuda.Device) -> Iterator[Copies]:
    copies = Copies(device)
    yield copies
    copies.free()


def values(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def test_the_device_tells_what_it_is(device: cuda.Device) -> None:
    assert device.name
    assert device.compute_capability >= 50
    assert device.multiprocessors > 0
    assert 0 < cuda_graph.free_memory(device) <= device.memory_bytes
    assert device.cpu_wait in ("spin", "auto", "yield", "blocking")


def test_values_survive_the_way_to_the_device_and_back(device: cuda.Device, copies: Copies) -> None:
    copies.source[:] = values(0)
    copies.enqueue()
    device.synchronize()
    np.testing.assert_array_equal(copies.target, values(0))


def test_a_captured_graph_copies_the_current_values(device: cuda.Device, copies: Copies) -> None:
    copies.target[:] = 0
    graph = cuda_graph.capture(device, copies.enqueue)
    device.synchronize()
    assert not copies.target.any()  # recorded, not run
    for seed in (1, 2):
        copies.source[:] = values(seed)
        graph.launch()
        device.synchronize()
        np.testing.assert_array_equal(copies.target, values(seed))
    graph.free()


def test_the_stream_is_usable_after_a_failed_capture(device: cuda.Device, copies: Copies) -> None:
    def fail() -> None:
        copies.enqueue()
        raise BuildError("refused")

    with pytest.raises(BuildError, match="refused"):
        cuda_graph.capture(device, fail)
    copies.source[:] = values(3)
    copies.enqueue()
    device.synchronize()
    np.testing.assert_array_equal(copies.target, values(3))


def test_events_time_the_work_between_them(device: cuda.Device, copies: Copies) -> None:
    stopwatch = cuda_graph.Stopwatch(device)

    def elapsed_ms(repetitions: int) -> float:
        stopwatch.start()
        for _ in range(repetitions):
            copies.enqueue()
        stopwatch.stop()
        device.synchronize()
        return stopwatch.elapsed_ms()

    elapsed_ms(1)
    few, many = (min(elapsed_ms(repetitions) for _ in range(5)) for repetitions in (1, 20))
    stopwatch.free()
    assert 0 < few < many


def test_memory_that_the_gpu_does_not_have_is_an_error(device: cuda.Device) -> None:
    with pytest.raises(BuildError, match="out of memory"):
        device.allocate(2 * device.memory_bytes)


def test_nvml_knows_the_gpu_by_the_uuid_that_cuda_tells(device: cuda.Device) -> None:
    with nvml_session() as nvml:
        assert nvml is not None
        (gpu,) = gpus_with(nvml, [device.uuid]).values()
        assert gpu.name
        assert nvml.driver
        assert (gpu.clock_mhz(1) or 0) > 0
        assert 0 < (gpu.temperature_c() or 0) < 120
        assert (gpu.power_w() or 1) > 0  # boards without a sensor have none


def test_pytorch_on_the_gpu_computes_what_it_computes_on_the_processor() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GELU())
    inputs = [TensorSpec("x", "float32", (1, 3, 16, 16))]
    outputs = [TensorSpec("y", "float32", (1, 8, 14, 14))]
    feeds = {"x": values(4)[: 3 * 16 * 16].reshape(1, 3, 16, 16)}
    expected = TorchEngine(module, inputs, outputs).run(feeds)["y"]
    engine = TorchEngine(module, inputs, outputs, mode=torch_mode("torch-cuda"))
    np.testing.assert_allclose(engine.run(feeds)["y"], expected, rtol=0, atol=2e-3)  # cuDNN may use TF32
    assert (engine.compute_ms() or 0) > 0
    with cuda.Device() as device:
        assert device.uuid in engine.conditions[GPU_UUID]
