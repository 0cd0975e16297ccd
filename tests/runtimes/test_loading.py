"""Time and memory of loading an engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a fresh process: in one that has run many tests the array may come from memory that was freed earlier.
HOLDS_64_MB = """
import numpy as np
from edgevit.peak_memory import resident_mb
before = resident_mb()
held = np.ones(8 * 2**20, np.float64)
after = resident_mb()
del held
assert 60 <= after - before <= 70, (before, after)
assert resident_mb() <= after - 60
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_sees_what_it_holds() -> None:
    subprocess.run([sys.executable, "-c", HOLDS_64_MB], check=True)
