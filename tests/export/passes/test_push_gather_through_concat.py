"""Moving Gather in front of Concat."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.push_gather_through_concat import push_gather_through_concat
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, parse

GATHER = f"""{HEADER} g (float[N, 5, 2] a, float[N, 5, 4] b) => (%s) {{
    c = Concat <axis = %d> (a, b)
    y = Gather <axis = %d> (c, indices)
    %s
}}"""


@pytest.mark.parametrize(("concat_axis", "gather_axis"), [(2, 1), (-1, 1), (-1, -2), (2, 0)])
@pytest.mark.parametrize("indices", [np.asarray(1), np.asarray([-1]), np.asarray([[0, 2]])])
def test_gather_moves_before_concat(concat_axis: int, gather_axis: int, indices: Array) -> None:
    shape = ["N", "5", "6"]
    shape[gather_axis : gather_axis + 1 or None] = [str(size) for size in indices.shape]
    before = parse(GATHER % (f"float[{', '.join(shape)}] y", concat_axis, gather_axis, ""), indices=indices)
    after = before.apply("push_gather_through_concat", push_gather_through_concat)
    assert dict(after.operators) == {"Gather": 2, "Concat": 1}
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("outputs", "gather_axis", "others"),
    [
        ("float[N, 5, 2] y", 2, ""),  # the same axis
        ("float[N, 2, 6] y, float[N, 5, 6] z", 1, "z = Relu (c)"),
        ("float[N, 2, 6] y, float[N, 5, 6] c", 1, ""),
    ],
)
def test_a_concat_that_is_needed_whole_stays(outputs: str, gather_axis: int, others: str) -> None:
    before = parse(GATHER % (outputs, 2, gather_axis, others), indices=np.asarray([3, 1]))
    after = before.apply("push_gather_through_concat", push_gather_through_concat)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
