"""The limit of a machine for a model."""

from __future__ import annotations

import dataclasses

import pytest

from tests.helpers.samples import ROOFLINE


def test_the_limit_is_the_larger_of_arithmetic_and_memory() -> None:
    assert ROOFLINE.compute_ms == pytest.approx(0.5 + 0.25)  # each precision at its own rate
    assert ROOFLINE.memory_ms == pytest.approx(0.5) and ROOFLINE.bound == "compute"
    assert ROOFLINE.fraction(1.5) == pytest.approx(0.5)
    large = dataclasses.replace(ROOFLINE, moved_bytes=3_000_000)
    assert large.bound == "memory" and large.limit_ms == pytest.approx(3)


def test_a_precision_without_a_rate_counts_at_the_fp32_rate() -> None:
    assert dataclasses.replace(ROOFLINE, macs={"fp16": 2_000_000}).compute_ms == pytest.approx(1)
