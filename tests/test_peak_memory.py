"""Peaks of memory, of this process and of its children."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest

from edgevit.peak_memory import PeakMemory, resident_mb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HELD = "import time; held = bytearray(64 << 20); print(flush=True); time.sleep(0.5)"


def test_a_peak_belongs_to_the_block_in_which_it_was() -> None:
    # A mapping of its own: an array may lie in memory that was freed before and is still resident.
    with PeakMemory() as high, mmap.mmap(-1, 64 << 20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    with PeakMemory(children=False) as low:
        pass
    assert high.peak_mb is not None and low.peak_mb is not None
    assert high.peak_mb - low.peak_mb > 50


def test_the_memory_of_a_child_is_added() -> None:
    own_mb = resident_mb()
    with PeakMemory() as memory:
        subprocess.run([sys.executable, "-c", HELD], check=True, stdout=subprocess.DEVNULL)
    assert own_mb is not None and memory.peak_mb is not None
    assert memory.peak_mb - own_mb > 60


def test_without_a_reset_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.peak_memory._reset_peak", lambda: False)
    with PeakMemory(children=False) as memory:
        pass
    assert memory.peak_mb is None  # VmHWM may be of an earlier time
