"""Map an engine's memory in huge pages.

Linux maps memory in pages of 4 KB unless a program asks for more. A model of 50 MB has 12,000 of them, and a processor
remembers the addresses of 1,500 to 2,000; in a virtual machine each other one costs up to 24 reads of memory. Where
transparent huge pages are set to `madvise`, as most distributions have it, memory that a program asks for is mapped in
pages of 2 MB. The runtimes do not ask. So the blocks that a runtime has filled while it loaded a model and ran it for
the first time are advised (`MADV_HUGEPAGE`) and, with Linux 6.1 or later, mapped anew at once (`MADV_COLLAPSE`); older
kernels do that in the background. Values and addresses stay as they are.

Documentation/admin-guide/mm/transhuge.rst and Documentation/admin-guide/mm/pagemap.rst of the Linux kernel, madvise(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import BinaryIO, TypeVar

import numpy as np

from edgevit.runtimes.memory_mappings import MADV_COLLAPSE, MADV_HUGEPAGE, mappings, memory_advice
from edgevit.runtimes.session_settings import SessionSettings, Setting

HUGE_PAGES = Setting("huge_pages", ("on", "off"))  # whether the engine's memory is mapped in pages of 2 MB
THREAD = "edgevit-huge-pages"
_Result = TypeVar("_Result")
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_PAGE_MAP = Path("/proc/self/pagemap")
_PAGE_BYTES = 4096
_MAX_BLOCK_BYTES = 4 << 20  # on Arm with pages of 64 KB, blocks have 512 MB, more than a model
_ENTRY_BYTES = 8  # of a page in the page map
_PRESENT = np.uint64(63)  # its bit in an entry
_MIN_GROWTH = 0.5  # fraction of a block's pages that are new
_MIN_PRESENT = 0.9  # fraction of its pages that are in memory: the others would be added
_ADVISED_RUN = 2  # an engine that runs once, on one image, would not gain the time back


class HugePages:
    """The blocks of memory that this process fills while an engine is loaded and runs for the first time.

    Blocks of other threads that do so meanwhile are among them. Memory that was freed before is given back to the
    system first, since a block that an engine takes over would not be seen.
    """

    def __init__(self) -> None:
        _release_freed_memory()
        self._before = _present_pages()
        self._filled: set[int] = set()
        self._runs = 0

    def loaded(self) -> None:
        """Take note of the blocks that were filled since the beginning, or since a first run began."""
        now = _present_pages()
        self._filled |= _filled(self._before, now)
        self._before = {}

    def begin_run(self) -> None:
        if self._runs == 0:
            self._before = _present_pages()

    def end_run(self) -> bool:
        """Take note of the blocks that the first run has filled; after the second, map all. Return whether it did.

        They are mapped in a thread of its own, since a block takes up to 5 ms: inferences go on meanwhile.
        """
        self._runs += 1
        if self._runs == 1:
            self.loaded()
        if self._runs < _ADVISED_RUN:
            return False
        Thread(target=map_in_huge_pages, args=(self._filled,), name=THREAD, daemon=True).start()
        return True


class Mappable:
    """An instance of an engine, whose memory is mapped in huge pages after its second run if it is watched."""

    _huge_pages: HugePages | None = None  # until it is mapped

    def _watch(self, huge_pages: HugePages | None) -> None:
        """Watch the instance, which has been loaded by now, as `huge_pages` has done since before."""
        if huge_pages is not None:
            huge_pages.loaded()
        self._huge_pages = huge_pages

    def _run_watched(self, run: Callable[[], _Result]) -> _Result:
        """Call `run`, one of the first runs of the instance."""
        huge_pages = self._huge_pages
        if huge_pages is None:  # another thread has had it mapped meanwhile
            return run()
        huge_pages.begin_run()
        result = run()
        if huge_pages.end_run():
            self._huge_pages = None
        return result


def watch_memory(session: SessionSettings) -> HugePages | None:
    """Begin to watch the memory of an engine that is about to be loaded; None if it stays in small pages."""
    return HugePages() if session.get(HUGE_PAGES) == "on" and can_map_in_huge_pages() else None


@functools.cache
def can_map_in_huge_pages() -> bool:
    """Return whether the system lets programs ask for huge pages, and tells which pages are in memory."""
    if sys.platform != "linux" or not 0 < _block_bytes() <= _MAX_BLOCK_BYTES:
        return False
    try:
        return "[never]" not in (_SETTINGS / "enabled").read_text() and _reads_page_map()
    except OSError:
        return False


def _reads_page_map() -> bool:
    with _PAGE_MAP.open("rb", buffering=0) as page_map:
        page_map.seek(id(page_map) // _PAGE_BYTES * _ENTRY_BYTES)  # of any object's page
        return len(page_map.read(_ENTRY_BYTES)) == _ENTRY_BYTES


def map_in_huge_pages(blocks: set[int]) -> None:
    """Map blocks of memory, by their numbers, in huge pages; those that the system refuses stay as they are."""
    advise, size = memory_advice(), _block_bytes()
    for start, end in _runs_of(sorted(blocks)):
        advise(start * size, (end - start) * size, MADV_HUGEPAGE)
        for block in range(start, end):  # one refusal, such as no memory, does not end the others
            advise(block * size, size, MADV_COLLAPSE)


def _runs_of(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first of each run of consecutive numbers, and the number after its last."""
    for _, run in itertools.groupby(enumerate(blocks), key=lambda place: place[1] - place[0]):
        numbers = [block for _, block in run]
        yield numbers[0], numbers[-1] + 1


def _filled(before: dict[int, int], now: dict[int, int]) -> set[int]:
    """Return the blocks that are nearly full now and were not before, for pages in memory by block."""
    pages = _block_bytes() // _PAGE_BYTES
    return {
        block
        for block, count in now.items()
        if count >= _MIN_PRESENT * pages and count - before.get(block, 0) >= _MIN_GROWTH * pages
    }


def _present_pages() -> dict[int, int]:
    """Return the pages that are in memory of each block of the process's own writable memory, by block number."""
    found: dict[int, int] = {}
    size = _block_bytes()
    with contextlib.suppress(OSError), _PAGE_MAP.open("rb", buffering=0) as page_map:
        for each in mappings():
            first, last = -(-each.start // size), each.end // size
            if first < last and each.permissions == "rw-p" and each.path in ("", "[heap]"):
                counts = _count_present(page_map, first, last)
                found.update((first + int(index), int(counts[index])) for index in np.flatnonzero(counts))
    return found


def _count_present(page_map: BinaryIO, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    pages = _block_bytes() // _PAGE_BYTES
    page_map.seek(first * pages * _ENTRY_BYTES)
    entries = np.frombuffer(page_map.read((last - first) * pages * _ENTRY_BYTES), np.uint64)
    counts: np.ndarray[tuple[int], np.dtype[np.int64]] = (
        (entries >> _PRESENT).reshape(-1, pages).sum(1).astype(np.int64)
    )
    return counts


def _release_freed_memory() -> None:
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _block_bytes() -> int:
    """Return the size of a huge page; 0 if the system has none."""
    try:
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0
