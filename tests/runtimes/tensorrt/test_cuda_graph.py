"""CUDA driver bindings, pinned memory and CUDA graphs, with a fake driver that uses this process's memory."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.errors import BuildError, MissingError
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.cuda_graph import PinnedMemory, Stopwatch, capture, free_memory, shares_memory
from tests.fakes.cuda_driver import Driver


def test_a_device_is_described(fake_device: cuda.Device, driver: Driver) -> None:
    assert (fake_device.multiprocessors, fake_device.memory_bytes) == (14, 30 << 30)
    assert fake_device.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    driver.uuid = bytes(16)
    assert fake_device.uuid == ""


def test_the_processor_spins_unless_the_context_refuses(fake_device: cuda.Device, driver: Driver) -> None:
    assert fake_device.cpu_wait == "spin" and driver.calls.index("cuDevicePrimaryCtxSetFlags_v2") < driver.calls.index(
        "cuDevicePrimaryCtxRetain"
    )
    driver.refuses, driver.flags = "cuDevicePrimaryCtxSetFlags_v2", [4 | 8]  # in use, and set by another library
    with cuda.Device() as other:
        assert other.cpu_wait == "blocking"
    driver.refuses = ""


def test_the_driver_tells_its_cuda_version(fake_device: cuda.Device, driver: Driver) -> None:
    assert fake_device.name is not None and cuda.driver_version() == "12.2"
    driver.refuses = "cuDriverGetVersion"
    assert cuda.driver_version() is None


def test_a_device_reports_its_memory(fake_device: cuda.Device) -> None:
    assert (fake_device.compute_capability, free_memory(fake_device), shares_memory(fake_device)) == (87, 5 << 30, True)


def test_pinned_memory_is_an_array_of_any_shape_that_fits(fake_device: cuda.Device) -> None:
    pinned, buffer = PinnedMemory(fake_device, 4 * 6), fake_device.allocate(4 * 6)
    given = pinned.array((2, 3), "float32")
    np.copyto(given, np.arange(6, dtype=np.float32).reshape(2, 3))
    buffer.upload(given)
    given[:] = 0
    half = pinned.array((1, 3), "float32")
    buffer.download(half)
    np.testing.assert_array_equal(pinned.array((6,), "float32"), [0, 1, 2, 0, 0, 0])
    buffer.free()
    pinned.free()
    pinned.free()  # a second time does nothing


def test_work_is_recorded_once_and_launched_as_a_graph(fake_device: cuda.Device, driver: Driver) -> None:
    runs: list[int] = []
    graph = capture(fake_device, lambda: runs.append(1))
    driver.calls.clear()
    graph.launch()
    graph.launch()
    graph.free()
    assert driver.calls == ["cuGraphLaunch", "cuGraphLaunch", "cuGraphExecDestroy", "cuGraphDestroy"]
    assert runs == [1]


def test_events_around_work_tell_its_time_on_the_gpu(fake_device: cuda.Device, driver: Driver) -> None:
    stopwatch = Stopwatch(fake_device)
    driver.calls.clear()
    stopwatch.start()
    stopwatch.stop()
    assert stopwatch.elapsed_ms() == 0.75
    stopwatch.free()
    stopwatch.free()  # a second time does nothing
    assert driver.calls == ["cuEventRecord"] * 2 + ["cuEventElapsedTime"] + ["cuEventDestroy_v2"] * 2


@pytest.mark.parametrize("refused", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_work_that_cannot_be_recorded_gives_no_graph(fake_device: cuda.Device, driver: Driver, refused: str) -> None:
    driver.refuses = refused
    with pytest.raises(BuildError, match=refused):
        capture(fake_device, lambda: None)
    assert ("cuGraphDestroy" in driver.calls) == (refused == "cuGraphInstantiateWithFlags")


def test_work_that_fails_while_it_is_recorded_leaves_the_stream_usable(
    fake_device: cuda.Device, driver: Driver
) -> None:
    def fail() -> None:
        raise BuildError("CUDA error")

    with pytest.raises(BuildError, match="CUDA error"):
        capture(fake_device, fail)
    assert driver.calls[-2:] == ["cuStreamEndCapture", "cuGraphDestroy"]


@pytest.mark.usefixtures("fake_device")
@pytest.mark.parametrize("status", [34, 35, 46, 100, 802, 803, 804, 999])
def test_a_driver_without_a_gpu_is_a_missing_error(driver: Driver, status: int) -> None:
    driver.status = status
    driver.refuses = "cuInit"
    with pytest.raises(MissingError, match=rf"no usable NVIDIA GPU: .*cuInit: {status}"):
        cuda.Device()
    assert not cuda.has_gpu()
    driver.refuses = ""
    assert cuda.has_gpu()


def test_running_out_of_pinned_memory_is_an_error(fake_device: cuda.Device, driver: Driver) -> None:
    driver.refuses = "cuMemHostAlloc"
    with pytest.raises(BuildError, match="cuMemHostAlloc"):
        PinnedMemory(fake_device, 16)
