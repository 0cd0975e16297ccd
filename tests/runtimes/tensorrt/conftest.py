"""A fake CUDA driver and its device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgevit.runtimes.tensorrt import cuda
from tests.fakes.cuda_driver import Driver, fake_driver


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def fake_device(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[cuda.Device]:
    """A device of the fake driver; everything on it has to be freed."""
    monkeypatch.setattr(cuda, "_load_driver", lambda: fake_driver(driver))
    with cuda.Device() as opened:
        yield opened
    assert driver.memory == {}
