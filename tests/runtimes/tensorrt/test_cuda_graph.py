"""CUDA driver bindings, pinned memory and CUDA graphs, with a fake driver that uses this process's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevit.errors import BuildError, MissingError
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.cuda_graph import PinnedMemory, Stopwatch, capture, free_memory, shares_memory

STREAM, GRAPH, READY, EVENT = 7, 11, 13, 17


@dataclass
class Driver:
    """The fake driver's memory, its calls, and the function that fails."""

    refuses: str = ""
    status: int = 901  # the status it returns: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    uuid: bytes = bytes(range(16))
    flags: list[int] = field(default_factory=list)  # of the context
    calls: list[str] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)

    def take(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        self.calls.append(name)
        if name == self.refuses:
            return self.status
        if action := ACTIONS.get(name):
            action(self, *arguments)
        return 0


def _set(place: Any, value: int) -> int:
    place[0] = value
    return value


ACTIONS: dict[str, Callable[..., object]] = {
    "cuDeviceGetAttribute": lambda _, place, attribute, __: _set(place, {75: 8, 76: 7, 18: 1, 16: 14}[attribute]),
    "cuDeviceTotalMem_v2": lambda _, place, __: _set(place, 30 << 30),
    "cuDeviceGetUuid": lambda driver, place, _: ctypes.memmove(place, driver.uuid, 16),
    "cuDriverGetVersion": lambda _, place: _set(place, 12020),
    "cuDevicePrimaryCtxSetFlags_v2": lambda driver, _, flags: driver.flags.append(flags),
    "cuDevicePrimaryCtxGetState": lambda driver, _, place, __: _set(place, (driver.flags or [0])[-1]),
    "cuDevicePrimaryCtxRetain": lambda _, place, __: _set(place, 3),
    "cuStreamCreate": lambda _, place, __: _set(place, STREAM),
    "cuMemGetInfo_v2": lambda _, free, total: [_set(place, size << 30) for place, size in ((free, 5), (total, 8))],
    "cuMemHostAlloc": lambda driver, place, size, _: _set(place, driver.take(size)),
    "cuMemFreeHost": lambda driver, address: driver.memory.pop(address),
    "cuMemAlloc_v2": lambda driver, place, size: _set(place, driver.take(size)),
    "cuMemFree_v2": lambda driver, address: driver.memory.pop(address),
    "cuMemcpyHtoDAsync_v2": lambda _, to, source, size, __: ctypes.memmove(to, source, size),
    "cuMemcpyDtoHAsync_v2": lambda _, to, source, size, __: ctypes.memmove(to, source, size),
    "cuStreamEndCapture": lambda _, __, place: _set(place, GRAPH),
    "cuEventCreate": lambda _, place, __: _set(place, EVENT),
    "cuEventElapsedTime": lambda _, place, __, ___: _set(place, 0.75),  # type: ignore[arg-type]
    "cuGraphInstantiateWithFlags": lambda _, place, __, ___: _set(place, READY),
}


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def device(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[cuda.Device]:
    functions = {
        name: ctypes.CFUNCTYPE(ctypes.c_int, *types)(lambda *arguments, name=name: driver.answer(name, arguments))
        for name, types in (cuda._CALLS | cuda_graph._CALLS).items()
    }
    monkeypatch.setattr(cuda, "_load_driver", lambda: SimpleNamespace(**functions))
    with cuda.Device() as opened:
        yield opened
    assert driver.memory == {}  # everything was freed


def test_a_device_is_described(device: cuda.Device, driver: Driver) -> None:
    assert (device.multiprocessors, device.memory_bytes) == (14, 30 << 30)
    assert device.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    driver.uuid = bytes(16)
    assert device.uuid == ""


def test_the_processor_spins_unless_the_context_refuses(device: cuda.Device, driver: Driver) -> None:
    assert device.cpu_wait == "spin" and driver.calls.index("cuDevicePrimaryCtxSetFlags_v2") < driver.calls.index(
        "cuDevicePrimaryCtxRetain"
    )
    driver.refuses, driver.flags = "cuDevicePrimaryCtxSetFlags_v2", [4 | 8]  # in use, and set by another library
    with cuda.Device() as other:
        assert other.cpu_wait == "blocking"
    driver.refuses = ""


def test_the_driver_tells_its_cuda_version(device: cuda.Device, driver: Driver) -> None:
    assert device.name is not None and cuda.driver_version() == "12.2"
    driver.refuses = "cuDriverGetVersion"
    assert cuda.driver_version() is None


def test_a_device_reports_its_memory(device: cuda.Device) -> None:
    assert (device.compute_capability, free_memory(device), shares_memory(device)) == (87, 5 << 30, True)


def test_pinned_memory_is_an_array_of_any_shape_that_fits(device: cuda.Device) -> None:
    pinned, buffer = PinnedMemory(device, 4 * 6), device.allocate(4 * 6)
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


def test_work_is_recorded_once_and_launched_as_a_graph(device: cuda.Device, driver: Driver) -> None:
    runs: list[int] = []
    graph = capture(device, lambda: runs.append(1))
    driver.calls.clear()
    graph.launch()
    graph.launch()
    graph.free()
    assert driver.calls == ["cuGraphLaunch", "cuGraphLaunch", "cuGraphExecDestroy", "cuGraphDestroy"]
    assert runs == [1]


def test_events_around_work_tell_its_time_on_the_gpu(device: cuda.Device, driver: Driver) -> None:
    stopwatch = Stopwatch(device)
    driver.calls.clear()
    stopwatch.start()
    stopwatch.stop()
    assert stopwatch.elapsed_ms() == 0.75
    stopwatch.free()
    stopwatch.free()  # a second time does nothing
    assert driver.calls == ["cuEventRecord"] * 2 + ["cuEventElapsedTime"] + ["cuEventDestroy_v2"] * 2


@pytest.mark.parametrize("refused", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_work_that_cannot_be_recorded_gives_no_graph(device: cuda.Device, driver: Driver, refused: str) -> None:
    driver.refuses = refused
    with pytest.raises(BuildError, match=refused):
        capture(device, lambda: None)
    assert ("cuGraphDestroy" in driver.calls) == (refused == "cuGraphInstantiateWithFlags")


def test_work_that_fails_while_it_is_recorded_leaves_the_stream_usable(device: cuda.Device, driver: Driver) -> None:
    def fail() -> None:
        raise BuildError("CUDA error")

    with pytest.raises(BuildError, match="CUDA error"):
        capture(device, fail)
    assert driver.calls[-2:] == ["cuStreamEndCapture", "cuGraphDestroy"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("status", [34, 35, 46, 100, 802, 803, 804, 999])
def test_a_driver_without_a_gpu_is_a_missing_error(driver: Driver, status: int) -> None:
    driver.status = status
    driver.refuses = "cuInit"
    with pytest.raises(MissingError, match=rf"no usable NVIDIA GPU: .*cuInit: {status}"):
        cuda.Device()
    assert not cuda.has_gpu()
    driver.refuses = ""
    assert cuda.has_gpu()


def test_running_out_of_pinned_memory_is_an_error(device: cuda.Device, driver: Driver) -> None:
    driver.refuses = "cuMemHostAlloc"
    with pytest.raises(BuildError, match="cuMemHostAlloc"):
        PinnedMemory(device, 16)
