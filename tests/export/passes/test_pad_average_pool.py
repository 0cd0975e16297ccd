"""Average pooling that counts its padding, with a Pad before it."""

from __future__ import annotations

import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.pad_average_pool import pad_average_pool
from tests.helpers.graphs import HEADER, assert_same, parse

COUNTED = "kernel_shape = [3, 2], strides = [2, 3], ceil_mode = 1, count_include_pad = 1"


def pool(attributes: str, size: str = "[N, 2, 6, 7]") -> OnnxGraph:
    return parse(f"{HEADER} g (float{size} x) => (float[N, 2, H, W] y) {{ y = AveragePool <{attributes}> (x) }}")


@pytest.mark.parametrize("pads", [[1, 1, 1, 0], [0, 0, 0, 1]])
def test_the_padding_moves_to_a_pad(pads: list[int]) -> None:
    before = pool(f"{COUNTED}, pads = {pads}")
    after = before.apply("pad_average_pool", pad_average_pool)
    assert [node.op_type for node in after.model.graph] == ["Pad", "AveragePool"]
    assert_same(before, after, within=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [COUNTED, f"{COUNTED}, pads = [0, 0, 1, 1]", "kernel_shape = [3, 3], ceil_mode = 1, pads = [1, 1, 1, 1]"],
)
def test_other_pooling_stays(attributes: str) -> None:
    """Without padding; if no window ends after it; and without counting it."""
    assert dict(pool(attributes).apply("pad_average_pool", pad_average_pool).operators) == {"AveragePool": 1}


def test_pooling_of_unknown_sizes_is_padded() -> None:
    after = pool(f"{COUNTED}, pads = [1, 1, 1, 0]", "[N, 2, H0, W0]").apply("pad_average_pool", pad_average_pool)
    assert [node.op_type for node in after.model.graph] == ["Pad", "AveragePool"]
