"""The clock and the probe of the machine's speed."""

from __future__ import annotations

from edgevit.latency import clock


def test_the_probe_and_the_clock_resolution_are_finite() -> None:
    assert clock.machine_speed_ms() > 0
    assert 1 <= clock.resolution_ns() < 1_000_000_000
