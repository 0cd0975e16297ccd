"""Drop pages of a mapped file that a runtime keeps after it has copied them.

OpenVINO maps an engine's weights into memory and packs them into a copy of its own; the pages that it has read stay
until the engine is closed. Linux can drop pages of a read-only mapping at any time, and reads them again when they are
used.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from edgevit.runtimes.memory_mappings import MADV_DONTNEED, mappings, memory_advice

MIN_BYTES = 128_000_000  # of a file whose pages are dropped; smaller ones are not worth it
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
        advise, path = memory_advice(), str(file.resolve())
        for each in mappings():
            if each.path == path and each.permissions.startswith("r-"):
                advise(each.start, each.end - each.start, MADV_DONTNEED)
