"""Initial states of recurrent layers."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.eliminate_zero_states import eliminate_zero_states
from tests.helpers.graphs import HEADER, assert_same, noise, parse


@pytest.mark.parametrize(("value", "count"), [(0.0, 0), (0.5, 1)])
@pytest.mark.parametrize(("cell", "gates", "states"), [("LSTM", 4, "h, h"), ("GRU", 3, "h"), ("RNN", 1, "h")])
def test_only_zeros_are_removed(cell: str, gates: int, states: str, value: float, count: int) -> None:
    before = parse(
        f"""{HEADER} g (float[5, 2, 4] x) => (float[A, B, C, D] y) {{
            layers = Expand (value, shape)
            h = Slice (layers, first, second)
            y = {cell} <hidden_size = 3> (x, w, r, , , {states})
        }}""",
        value=np.array(value, np.float32),
        shape=np.array([2, 2, 3]),
        first=np.array([0]),
        second=np.array([1]),
        w=noise(1, gates * 3, 4, seed=1),
        r=noise(1, gates * 3, 3, seed=2),
    )
    after = before.apply("eliminate_zero_states", eliminate_zero_states)
    assert after.operators["Expand"] == count
    assert_same(before, after, exact=True)
