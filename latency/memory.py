"""Peak memory of a subprocess. Megabytes here are 2**20 bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from edgevit.errors import MeasureError

# The command is a grandchild on purpose: Linux counts the memory of the process that forks as a peak of the child
# (ru_maxrss survives exec), and whoever measures may hold gigabytes. This child holds a bare interpreter.
_WATCH = """
import os, resource, sys
answer = os.dup(1)
os.dup2(2, 1)
status = os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:])
os.write(answer, b"%d %d" % (status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def peak_memory_of(command: Sequence[str]) -> float:
    """The most memory that `command` held at once, run in a process of its own, in MB.

    About 8 MB are the least that can be told. Raises MeasureError where the command fails.
    """
    watcher = [sys.executable, "-S", "-c", _WATCH]
    watch = subprocess.run([*watcher, *command], check=False, capture_output=True, text=True)
    status, _, peak = watch.stdout.partition(" ")
    if status != "0":
        lines = watch.stderr.strip().splitlines() or ["it said nothing"]
        raise MeasureError(f"{' '.join(command)} ended with status {status or 'unknown'} ({lines[-1]}); run it by hand")
    bytes_each = 1 if sys.platform == "darwin" else 1024
    return int(peak) * bytes_each / 2**20
