"""Find outputs that differ from run to run for the same input, so that no engine can be compared with them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping

from edgevit.arrays import differences, finite_std
from edgevit.types import Array

_REPEATED_STD = 1e-5  # between two runs of one input, of an output's standard deviation: threads may sum in any order
_REPEATS, _REPEAT_S = 8, 0.5


def differing_row(
    run_row: Callable[[int], Mapping[str, Array]], outputs: Mapping[str, Array], *, rows: int
) -> int | None:
    """Run rows again, and return the first whose outputs, (1, ...), differ from those in `outputs`; None if none does.

    One row is run in any case, and up to `_REPEATS` for `_REPEAT_S`: a few outputs behind dropout may agree by chance.
    """
    end_s = time.monotonic() + _REPEAT_S
    for row in itertools.islice(itertools.cycle(range(rows)), _REPEATS):
        again = run_row(row)
        if any(
            (differences(again[name], array[row : row + 1]) > _REPEATED_STD * finite_std(array)).any()
            for name, array in outputs.items()
        ):
            return row
        if time.monotonic() > end_s:
            break
    return None
