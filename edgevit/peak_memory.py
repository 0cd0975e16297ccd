"""Resident memory of this process and of its children, as Linux counts it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")
_RESET_PEAK = "5"  # written to clear_refs, it sets VmHWM to the present VmRSS
_POLL_S = 0.2


def resident_mb(process: int | str = "self", *, peak: bool = False) -> float | None:
    """Return the resident memory of a process, or its peak, in MB of 2**20 bytes; None if it is not reported."""
    field = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = (_PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)


class PeakMemory:
    """The peak of resident memory during a `with` block, of this process together with its children.

    The kernel keeps the peak of each process. A thread reads those of the children five times a second, since they are
    gone with them; without `children` it does not run, and nothing disturbs the block. Pages that both map count twice.
    """

    def __init__(self, *, children: bool = True) -> None:
        self.peak_mb: float | None = None  # known after the block
        self._children = children
        self._with_children_mb = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        self._can_reset = _reset_peak()
        if self._children:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        own_mb = resident_mb(peak=True)
        if self._can_reset and own_mb is not None:  # else it is the peak of an earlier time
            self.peak_mb = max(own_mb, self._with_children_mb)

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_S):
            peaks = [resident_mb(child, peak=True) or 0.0 for child in _children()]
            if peaks:
                self._with_children_mb = max(self._with_children_mb, (resident_mb() or 0.0) + sum(peaks))


def _reset_peak() -> bool:
    try:
        (_PROC / "self" / "clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not Linux, or /proc is read-only
        return False
    return True


def _children() -> list[int]:
    """Return the process ids of the children that any thread has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (_PROC / "self" / "task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                found += map(int, (thread / "children").read_text().split())
    return found
