"""Drop pages of a mapped file that a runtime keeps after it has copied them.

OpenVINO maps an engine's weights into memory and packs them into a copy of its own; the pages that it has read stay
until the engine is closed. Linux can drop pages of a read-only mapping at any time, and reads them again when they are
used.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

MIN_BYTES = 128_000_000  # of a file whose pages are dropped; smaller ones are not worth it
_MAPS = Path("/proc/self/maps")
_DONT_NEED = 4  # MADV_DONTNEED
_POLL_S = 0.1


@contextlib.contextmanager
def dropping_pages(file: Path) -> Iterator[None]:
    """Drop the pages of a large file ten times a second during the block, and at its end."""
    if not file.exists() or file.stat().st_size < MIN_BYTES:
        yield
        return
    stopped = threading.Event()

    def repeat() -> None:
        while not stopped.wait(_POLL_S):
            drop_pages(file)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        drop_pages(file)


def drop_pages(file: Path) -> None:
    """Drop the pages of all read-only mappings of a file in this process; those that were written to are kept."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: they stay
        advise = ctypes.CDLL(None, use_errno=True).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, end in _read_only_mappings(str(file.resolve())):
            advise(start, end - start, _DONT_NEED)


def _read_only_mappings(path: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of the mappings of a file that this process cannot write to."""
    for line in _MAPS.read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
        if len(fields) == 6 and fields[5] == path and fields[1].startswith("r-"):
            start, end = fields[0].split("-")
            yield int(start, 16), int(end, 16)
