"""One-sided DFTs written with whole ones."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.decompose_onesided_dft import decompose_onesided_dft
from tests.helpers.graphs import HEADER, assert_same, parse


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("axis", [1, -2])
def test_the_forward_transform_is_a_slice(size: int, axis: int) -> None:
    before = parse(
        f"{HEADER} g (float[N, {size}, {size}, 1] x) => (float[N, A, B, 2] y) {{ y = DFT <onesided = 1> (x, , a) }}",
        a=np.array(axis),
    )
    after = before.apply("decompose_onesided_dft", decompose_onesided_dft)
    assert [node.op_type for node in after.model.graph] == ["DFT", "Slice"]
    assert_same(before, after)


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize(("length", "kept"), [(8, 5), (7, 4)])
def test_the_inverse_transform_adds_the_conjugates(length: int, kept: int, dtype: str) -> None:
    before = parse(
        f"{HEADER} g ({dtype}[N, 3, {kept}, 2] x) => ({dtype}[N, 3, {length}, 1] y) "
        "{ y = DFT <onesided = 1, inverse = 1> (x, n, a) }",
        n=np.array(length),
        a=np.array(2),
    )
    after = before.apply("decompose_onesided_dft", decompose_onesided_dft)
    assert [node.op_type for node in after.model.graph] == ["Slice", "Mul", "Concat", "DFT", "Slice"]
    assert_same(before, after)


def test_a_transform_along_an_unknown_axis_stays() -> None:
    before = parse(
        f"{HEADER} g (float[N, 6, 6, 1] x, int64 a) => (float[N, A, B, 2] y) {{ y = DFT <onesided = 1> (x, , a) }}"
    )
    assert dict(before.apply("decompose_onesided_dft", decompose_onesided_dft).operators) == {"DFT": 1}
