"""Peak memory of a subprocess, independent of the memory of the parent."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgevit.errors import MeasureError
from edgevit.latency import memory


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_the_peak_of_a_command_excludes_the_memory_of_the_parent() -> None:
    held = np.ones(50 * 2**20, np.float64)  # 400 MB, which Linux would count as the child's if forked directly
    bare, filled = memory.peak_memory_of(python("")), memory.peak_memory_of(python("x = b'x' * (100 * 2**20)"))
    assert filled - bare == pytest.approx(100, abs=5)  # the kernel counts pages in batches, core by core
    assert bare < held.nbytes / 2**20 / 2


@pytest.mark.parametrize("command", [python("raise SystemExit('no engine')"), ["no-such-program"]])
def test_a_command_that_fails_has_no_peak(command: list[str]) -> None:
    with pytest.raises(MeasureError, match="run it by hand"):
        memory.peak_memory_of(command)
