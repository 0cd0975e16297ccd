"""Locked clocks are those that the system reports as locked; others are floating or unknown."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgevit.errors import MeasureError
from edgevit.latency.settings import clock_settings, require_locked
from tests.helpers.samples import BOARD


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"governor": "performance", "min_mhz": 400.0, "max_mhz": 2000.0}, "locked"),
        ({"governor": "schedutil", "min_mhz": 2000.0, "max_mhz": 2000.0}, "locked"),
        ({"governor": "schedutil", "min_mhz": 400.0, "max_mhz": 2000.0}, "floating"),
        ({"governor": "performance, powersave", "min_mhz": 400.0, "max_mhz": 2000.0}, "floating"),
        ({"governor": "performance", "boost": True}, "floating"),
        ({"governor": "performance", "boost": False}, "locked"),
        ({"governor": None, "min_mhz": None, "max_mhz": None}, "unknown"),
        ({"governor": None, "min_mhz": None, "max_mhz": None, "boost": False}, "unknown"),
    ],
)
def test_the_clock_of_the_processor(changes: dict[str, Any], state: str) -> None:
    (setting,) = clock_settings(dataclasses.replace(BOARD, **changes), on_gpu=False)
    assert setting.state == state


@pytest.mark.parametrize(
    ("clocks", "state"),
    [
        ({"17000000.gpu": "nvhost_podgov, 306 to 918 MHz", "15340000.vic": "userspace, 1 to 1 MHz"}, "floating"),
        ({"17000000.gpu": "nvhost_podgov, 918 to 918 MHz"}, "locked"),
        ({"gpu-gpc-0": "performance, 306 to 918 MHz"}, "locked"),
        ({"gpu-gpc-0": "no words that edgevit wrote"}, "unknown"),
        ({}, "unknown"),  # a card in a PC
    ],
)
def test_the_clock_of_a_gpu(clocks: dict[str, str], state: str) -> None:
    environment = dataclasses.replace(BOARD, device_clocks=clocks)
    assert [setting.state for setting in clock_settings(environment, on_gpu=True)] == ["locked", state]
    assert len(clock_settings(environment, on_gpu=False)) == 1


def test_floating_and_unknown_clocks_are_refused_by_name() -> None:
    require_locked(BOARD, on_gpu=False)
    with pytest.raises(MeasureError, match=r"^not locked: clock of 17000000.gpu \(nvhost_podgov, 306 to 918 MHz\); lo"):
        require_locked(BOARD, on_gpu=True)
    virtual = dataclasses.replace(BOARD, governor=None, min_mhz=None, max_mhz=None)
    with pytest.raises(MeasureError, match="^cannot tell whether it is locked: processor clock"):
        require_locked(virtual, on_gpu=False)
