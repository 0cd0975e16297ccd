"""CUDA driver bindings, CUDA graphs, cuBLAS and NVML on a real GPU; skipped on a machine without one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgevit.errors import BuildError, MissingError
from edgevit.latency.roofline import device_copy_rate, matmul_rate
from edgevit.latency.sampling.nvml import gpus_with, nvml_session
from edgevit.runtimes.base import GPU_UUID
from edgevit.runtimes.pytorch import TorchEngine, torch_mode
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.cublas import Cublas
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from edgevit.runtimes.tensorrt.streams import Stream, TensorRtStreams
from edgevit.types import Array, TensorSpec
from tests.fakes.tensorrt import RTX, World, fake_tensorrt

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


def test_buffers_are_copied_within_the_device(device: cuda.Device) -> None:
    source, target = device.allocate(4 * SIZE), device.allocate(4 * SIZE)
    source.upload(values(5))
    target.copy_from(source)
    copied = np.zeros(SIZE, np.float32)
    target.download(copied)
    device.synchronize()
    np.testing.assert_array_equal(copied, values(5))
    for buffer in (source, target):
        buffer.free()


@pytest.fixture
def cublas(device: cuda.Device) -> Iterator[Cublas]:
    try:
        library = Cublas(device)
    except MissingError as error:
        pytest.skip(str(error))
    yield library
    library.close()


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-4), ("tf32", 3e-2), ("fp16", 0.1), ("int8", 0.0)])
def test_cublas_multiplies_in_each_precision(device: cuda.Device, cublas: Cublas, precision: str, error: float) -> None:
    product = cublas.product((48, 64, 32), precision)
    assert product is not None
    if not product.enqueue():
        pytest.skip(f"this GPU has no {precision}")
    result = np.empty((48, 32), product.arithmetic.result[0])
    product.result.download(result)
    device.synchronize()
    product.free()
    left, weight = (matrix.astype(np.float64) for matrix in product.factors)
    np.testing.assert_allclose(result, left @ weight.T, rtol=0, atol=error)


def open_engine() -> TensorRtEngine:
    """Return an engine of a fake TensorRT on the real GPU, of which everything but an inference works."""
    trt: Any = fake_tensorrt(RTX, World())
    return TensorRtEngine(trt, b'vplan{"runs": "fp32"}')


@pytest.mark.usefixtures("cublas")
def test_the_rates_of_an_engine_are_those_of_its_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with open_engine() as engine:
        rates = {name: matmul_rate(engine, name) or 0.0 for name in ("fp32", "tf32", "fp16", "int8")}
        copies_per_s = device_copy_rate(engine, 1 << 28) or 0.0
    listed = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in rates.items())
    with capsys.disabled():  # for docs/latency.md
        sys.stdout.write(f"\n{engine.product_library}: T MACs/s {listed}; copies {copies_per_s / 1e12:.2f} TB/s\n")
    assert rates["fp32"] > 1e10 and rates["fp16"] > rates["fp32"] and copies_per_s > 1e10


@pytest.mark.usefixtures("cublas")
def test_the_rates_are_those_that_pytorch_finds() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    pytorch = TorchEngine(torch.nn.Linear(2, 2), [], [], mode=torch_mode("torch-cuda"))
    with open_engine() as engine:
        for precision in ("fp32", "tf32"):
            found, expected = matmul_rate(engine, precision), matmul_rate(pytorch, precision)
            assert found is not None and expected is not None and 0.5 < found / expected < 2
        found, expected = device_copy_rate(engine, 1 << 28), device_copy_rate(pytorch, 1 << 28)
        assert found is not None and expected is not None and 0.5 < found / expected < 2


class CopyingContext:
    """An execution context of an engine that copies its input to its output."""

    def __init__(self, device: cuda.Device) -> None:
        self._device, self._addresses = device, dict[str, int]()

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (SIZE,)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._device.call("cuMemcpyDtoDAsync_v2", self._addresses["y"], self._addresses["x"], 4 * SIZE, stream)
        return True


def test_streams_run_several_inferences_at_once_as_graphs(device: cuda.Device) -> None:
    x, y = (TensorSpec(name, "float32", (SIZE,)) for name in ("x", "y"))

    def create() -> Stream:
        context: Any = CopyingContext(device)
        return Stream(context, [x], [y])

    runner = TensorRtStreams(create, 3)
    for seed in (6, 7):
        inferences, elapsed_s = runner.run_for({"x": values(seed)}, 0.1)
        assert inferences >= 3 and elapsed_s >= 0.1
        for stream in runner._created:
            assert stream._graph is not None
            np.testing.assert_array_equal(stream._bindings.views["y"], values(seed))
    runner.close()


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
