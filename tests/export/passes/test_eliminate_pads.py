"""Pads that add nothing."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.eliminate_pads import eliminate_pads
from tests.helpers.graphs import HEADER, assert_same, parse


@pytest.mark.parametrize(("amount", "count"), [(0, 0), (1, 1), (-1, 1)])
def test_only_a_pad_of_zeros_is_removed(amount: int, count: int) -> None:
    before = parse(
        f"{HEADER} g (float[2, 6] x) => (float[A, B] y) {{ a = Pad (x, p)  y = Neg (a) }}",
        p=np.array([0, 0, 0, amount]),
    )
    after = before.apply("eliminate_pads", eliminate_pads)
    assert after.operators["Pad"] == count
    assert_same(before, after, exact=True)
