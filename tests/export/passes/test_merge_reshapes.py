"""Reshapes of reshapes."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.merge_reshapes import merge_reshapes
from tests.helpers.graphs import HEADER, assert_same, parse


@pytest.mark.parametrize(("last", "count"), [([-1, 12], 1), ([0, 3, -1], 2)])
def test_the_first_is_left_out_unless_the_second_copies_from_it(last: list[int], count: int) -> None:
    dims = ", ".join("ABC"[: len(last)])
    before = parse(
        f"{HEADER} g (float[batch, 4, 6] x) => (float[{dims}] y) {{ a = Reshape (x, s)  y = Reshape (a, t) }}",
        s=np.array([-1, 2, 12]),
        t=np.array(last),
    )
    after = before.apply("merge_reshapes", merge_reshapes)
    assert dict(after.operators) == {"Reshape": count}
    assert_same(before, after, exact=True)
