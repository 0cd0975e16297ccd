"""Circular padding written with Slice and Concat."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgevit.export.passes.decompose_wrap_pad import decompose_wrap_pad
from edgevit.export.passes.downgrade_opset import downgrade_opset
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, parse

PAD = f"""{HEADER} g (float[N, 2, 5, 6] x) => (float[N, C, H, W] y) {{
    y = Pad <mode = "wrap"> (x, pads%s)
}}"""


@pytest.mark.parametrize(
    ("inputs", "tensors"),
    [
        ("", {"pads": np.asarray([0, 0, 1, 2, 0, 0, 3, 4])}),
        ("", {"pads": np.asarray([0, 0, 0, 2, 0, 0, 0, 0])}),
        ("", {"pads": np.zeros(8, np.int64)}),
        (", , axes", {"pads": np.asarray([1, 2, 3, 4]), "axes": np.asarray([-1, 2])}),
    ],
)
@pytest.mark.parametrize("opset", [17, 18])
def test_circular_padding_becomes_slices_and_concat(inputs: str, tensors: dict[str, Array], opset: int) -> None:
    before = parse(PAD % inputs, **tensors)
    after = before.apply("decompose_wrap_pad", decompose_wrap_pad)
    assert "Pad" not in after.operators
    assert_same(before, after.apply("opset", functools.partial(downgrade_opset, opset=opset)), exact=True)


@pytest.mark.parametrize("pads", [[0, 0, 6, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 7]])
def test_padding_that_repeats_an_axis_stays(pads: list[int]) -> None:
    before = parse(PAD % "", pads=np.asarray(pads))
    assert dict(before.apply("decompose_wrap_pad", decompose_wrap_pad).operators) == {"Pad": 1}


def test_other_padding_stays() -> None:
    text = (PAD % "").replace("wrap", "reflect")
    before = parse(text, pads=np.asarray([0, 0, 1, 1, 0, 0, 1, 1]))
    assert dict(before.apply("decompose_wrap_pad", decompose_wrap_pad).operators) == {"Pad": 1}
