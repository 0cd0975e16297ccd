"""The limit of a machine for a model."""

from __future__ import annotations

import dataclasses

import pytest

from edgevit.latency.roofline import copied_bytes, copy_rate
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
