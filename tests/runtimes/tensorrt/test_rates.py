"""Products and copies of a GPU, recorded in a graph."""

from __future__ import annotations

from typing import Any

import pytest

from edgevit.errors import BuildError, MissingError, UsageError
from edgevit.latency import roofline
from edgevit.latency.roofline import device_copy_rate, matmul_rate
from edgevit.runtimes.base import GRAPH_OPERATIONS
from edgevit.runtimes.tensorrt import cublas, cuda, rates
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from tests.fakes.cuda_driver import Driver
from tests.fakes.tensorrt import RTX, World, fake_tensorrt


class _Product:
    """A product that this GPU supports or not."""

    def __init__(self, *, is_supported: bool) -> None:
        self.is_supported, self.runs, self.freed = is_supported, 0, 0

    def enqueue(self) -> bool:
        self.runs += 1
        return self.is_supported

    def free(self) -> None:
        self.freed += 1


class _Cublas:
    def __init__(self, product: _Product | None) -> None:
        self._product, self.is_closed = product, False

    def product(self, shape: tuple[int, int, int], precision: str) -> _Product | None:
        return self._product

    def close(self) -> None:
        self.is_closed = True


def test_copies_are_recorded_once_and_timed_by_events(fake_device: cuda.Device, driver: Driver) -> None:
    with rates.copies(fake_device, 1 << 10) as copies:
        assert driver.calls.count("cuMemcpyDtoDAsync_v2") == 1 + GRAPH_OPERATIONS  # the first loads the kernel
        driver.calls.clear()
        copies.run()
        assert driver.calls == ["cuEventRecord", "cuGraphLaunch", "cuEventRecord", "cuStreamSynchronize"]
        assert copies.count == GRAPH_OPERATIONS
        assert copies.device_s is not None and copies.device_s() == 0.00075


def test_products_are_recorded_and_released(fake_device: cuda.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    product = _Product(is_supported=True)
    cublas = _Cublas(product)
    monkeypatch.setattr(rates, "Cublas", lambda _device: cublas)
    products = rates.products(fake_device, (2, 4, 4), "fp16")
    assert products is not None and product.runs == 1 + GRAPH_OPERATIONS
    with products:
        assert not cublas.is_closed
    assert (product.freed, cublas.is_closed) == (1, True)


@pytest.mark.parametrize("product", [None, _Product(is_supported=False)])
def test_a_precision_without_a_product_has_none_and_leaves_nothing(
    fake_device: cuda.Device, monkeypatch: pytest.MonkeyPatch, product: _Product | None
) -> None:
    cublas = _Cublas(product)
    monkeypatch.setattr(rates, "Cublas", lambda _device: cublas)
    assert rates.products(fake_device, (2, 4, 4), "int8") is None
    assert cublas.is_closed and (product is None or product.freed == 1)


def test_a_graph_that_cannot_be_recorded_leaves_nothing(fake_device: cuda.Device, driver: Driver) -> None:
    driver.refuses = "cuGraphInstantiateWithFlags"
    with pytest.raises(BuildError, match="cuGraphInstantiateWithFlags"):
        rates.copies(fake_device, 1 << 10)
    driver.refuses = ""


@pytest.mark.usefixtures("fake_device")
def test_an_engine_tells_the_rates_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    trt: Any = fake_tensorrt(RTX, World())
    product = _Product(is_supported=True)
    with TensorRtEngine(trt, b'vplan{"runs": "fp32"}') as engine:
        # An operation takes 0.75 ms / GRAPH_OPERATIONS by the events of the fake driver.
        assert device_copy_rate(engine, 1 << 20) == pytest.approx(GRAPH_OPERATIONS * (1 << 20) / 0.75e-3)
        monkeypatch.setattr(rates, "Cublas", lambda _device: _Cublas(product))
        monkeypatch.setattr(roofline, "_FILLED_S", 0.0)  # products do not grow
        assert matmul_rate(engine, "fp16") == pytest.approx(GRAPH_OPERATIONS * 1024**3 / 0.75e-3)
        assert engine.product_library == "cuBLAS"
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.copy(1 << 20)


@pytest.mark.usefixtures("fake_device")
def test_without_cublas_an_engine_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "_load", lambda _path: None)
    trt: Any = fake_tensorrt(RTX, World())
    with (
        TensorRtEngine(trt, b'vplan{"runs": "fp32"}') as engine,
        pytest.raises(MissingError, match="cuBLAS .* not found"),
    ):
        matmul_rate(engine, "fp16")


def test_a_buffer_takes_no_more_than_it_holds(fake_device: cuda.Device) -> None:
    small, large = fake_device.allocate(4), fake_device.allocate(8)
    with pytest.raises(BuildError, match="4 bytes cannot hold 8"):
        small.copy_from(large)
    for buffer in (small, large):
        buffer.free()
