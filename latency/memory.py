"""Peak memory of a subprocess, in MB of 2**20 bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from edgevit.errors import MeasureError

# The command runs as a grandchild: Linux counts the memory of the forking process as a peak of its child (ru_maxrss
# survives exec), and the measuring process may hold gigabytes. The child in between holds a bare interpreter.
_WATCH = """
import os, resource, sys
answer = os.dup(1)
os.dup2(2, 1)
status = os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:])
os.write(answer, b"%d %d" % (status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def peak_memory_of(command: Sequence[str]) -> float:
    """Run `command` in a subprocess and return its peak memory in MB. A peak below about 8 MB cannot be measured.

    Raises MeasureError if the command fails.
    """
    watcher = [sys.executable, "-I", "-S", "-c", _WATCH]  # -I: no module is imported from the current folder
    watch = subprocess.run([*watcher, *command], check=False, capture_output=True, text=True)
    status, _, peak = watch.stdout.partition(" ")
    if status != "0":
        lines = watch.stderr.strip().splitlines() or ["no output"]
        raise MeasureError(f"{' '.join(command)} ended with status {status or 'unknown'} ({lines[-1]}); run it by hand")
    bytes_each = 1 if sys.platform == "darwin" else 1024
    return int(peak) * bytes_each / 2**20
