"""Peak memory of a subprocess, in MB of 2**20 bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from edgevit.errors import MeasureError
from edgevit.subprocesses import DIE_WITH_PARENT, last_line

# Linux counts the memory of the process that forks as a peak of its child (ru_maxrss survives exec), and this process
# may hold gigabytes. So a bare interpreter starts the command, and imports ctypes after that.
_WATCH = f"""
import os, resource, sys
answer = os.dup(1)
os.dup2(2, 1)
child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
{DIE_WITH_PARENT}
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os.write(answer, b"%d %d" % (status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def peak_memory_of(command: Sequence[str]) -> float:
    """Run `command` and return the peak of its resident memory in MB; the smallest value it can measure is about 8 MB.

    For a Python command, use `python_command(..., is_child=False)`. Raises MeasureError if the command fails.
    """
    watcher = [sys.executable, "-I", "-S", "-c", _WATCH]  # -I: no modules from the current folder
    watch = subprocess.run([*watcher, *command], check=False, capture_output=True, text=True)
    status, _, peak = watch.stdout.partition(" ")
    if status != "0":
        last = last_line(watch.stderr) or "no output on stderr"
        raise MeasureError(f"{' '.join(command)} ended with status {status or 'unknown'} ({last}); run it by hand")
    bytes_each = 1 if sys.platform == "darwin" else 1024
    return int(peak) * bytes_each / 2**20
