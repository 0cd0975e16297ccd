"""Collect garbage rarely while packages are imported and graphs are built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects before a collection, and collections before one of older objects; Python's own are (700, 10, 10).
_THRESHOLDS = (20_000, 10, 5)


@contextmanager
def rare_collection() -> Iterator[None]:
    """Raise Python's collection thresholds during the block.

    PyTorch's modules and functions, and a graph, are some hundred thousand small objects each that all stay. Python
    looks through them again and again: in graphs 4 % of the processor time of an export of shiftvit_t, in imports 10 %.
    Its peak memory stays the same.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
