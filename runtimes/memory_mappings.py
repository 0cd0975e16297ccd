"""The memory mappings of this process, and advice to Linux about them: proc_pid_maps(5), madvise(2)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

MADV_DONTNEED, MADV_HUGEPAGE, MADV_COLLAPSE = 4, 14, 25
_MAPS = Path("/proc/self/maps")

Advise: TypeAlias = Callable[[int, int, int], Any]  # takes an address, bytes, and one of the constants above


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping of memory, from `start` to before `end`."""

    start: int
    end: int
    permissions: str  # such as "rw-p": readable, writable, not executable, private
    path: str  # of its file, or a name such as "[heap]"; empty if it has neither


def mappings() -> Iterator[Mapping]:
    """Yield the mappings in the order of their addresses. Raises OSError where there is no /proc."""
    for line in _MAPS.read_text("utf-8", "surrogateescape").splitlines():
        addresses, permissions, _offset, _device, _inode, *path = line.split(maxsplit=5)
        start, end = addresses.split("-")
        yield Mapping(int(start, 16), int(end, 16), permissions, path[0] if path else "")


def memory_advice() -> Advise:
    """Return the C library's madvise. Raises OSError or AttributeError where there is none."""
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
