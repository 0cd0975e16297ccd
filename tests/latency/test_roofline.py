"""The limit of a machine for a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest

from edgevit.latency import roofline
from edgevit.latency.roofline import copied_bytes, copy_rate, matmul_rate
from edgevit.runtimes.base import Engine, Operations
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array
from tests.helpers.samples import ROOFLINE


def test_the_limit_is_the_larger_of_arithmetic_and_memory() -> None:
    assert ROOFLINE.compute_ms == pytest.approx(0.5 + 0.25)  # each precision at its own rate
    assert ROOFLINE.memory_ms == pytest.approx(0.5) and ROOFLINE.bound == "compute"
    assert ROOFLINE.fraction(1.5) == pytest.approx(0.5)
    large = dataclasses.replace(ROOFLINE, moved_bytes=3_000_000)
    assert large.bound == "memory" and large.limit_ms == pytest.approx(3)


def test_a_precision_without_a_rate_counts_at_the_fp32_rate() -> None:
    assert dataclasses.replace(ROOFLINE, macs={"fp16": 2_000_000}).compute_ms == pytest.approx(1)


def test_an_unknown_precision_counts_at_the_best_rate() -> None:
    """Else a transformer in TensorRT 8.6, which is opaque, would seem to be faster than the machine."""
    assert dataclasses.replace(ROOFLINE, macs={"unknown": 2_000_000}).compute_ms == pytest.approx(0.25)


def test_the_copy_has_about_as_many_bytes_as_the_model_moves() -> None:
    assert [copied_bytes(size) for size in (1, 5_000_000, 10**10)] == [1 << 20, 1 << 23, 1 << 28]
    assert copy_rate(1, 1 << 20) > 1e8  # any machine copies 0.1 GB/s


class Gpu(Engine):
    """A device that multiplies 4e14 pairs of numbers a second, after some time in which it starts."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.shapes: list[tuple[int, int, int]] = []

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def executed_precision(self) -> ExecutedPrecision:
        raise NotImplementedError

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        self.shapes.append(shape)
        if precision == "int8":
            return None
        time_s = self.start_s + math.prod(shape) / 4e14
        return Operations(run=lambda: None, device_s=lambda: time_s)


@pytest.mark.parametrize(("start_s", "largest"), [(1e-5, 4096), (1e-3, 1024)])
def test_products_grow_until_they_fill_the_device(
    start_s: float, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "_SHAPE_S", 0.0)
    gpu = Gpu(start_s)
    rate = largest**3 / (start_s + largest**3 / 4e14)
    assert matmul_rate(gpu, "fp16") == pytest.approx(rate)
    assert max(max(shape) for shape in gpu.shapes if len(set(shape)) == 1) == largest
    assert matmul_rate(gpu, "int8") is None
