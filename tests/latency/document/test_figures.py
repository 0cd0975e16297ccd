"""Figures as text."""

from __future__ import annotations

import pytest

from edgevit.latency.document.figures import millijoules
from edgevit.latency.sampling.energy import EnergyEstimate
from edgevit.types import Interval


@pytest.mark.parametrize(
    ("joules", "interval", "text"),
    [
        (0.162, Interval(0.15, 0.1744), "162 (150 to 174)"),
        (0.162, Interval(-0.15, 0.1744), "at most 174"),
        (-0.2, Interval(-0.3, -0.1), "at most 0"),
        (0.0123, None, "12.3 (-)"),
    ],
)
def test_an_energy_has_its_interval_or_is_a_limit(joules: float, interval: Interval | None, text: str) -> None:
    assert millijoules(EnergyEstimate(joules=joules, interval=interval, idle_w=5.0)) == text
