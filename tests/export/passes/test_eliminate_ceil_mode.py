"""Poolings in which ceil_mode adds no window."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.eliminate_ceil_mode import eliminate_ceil_mode
from tests.helpers.graphs import HEADER, assert_same, parse, run


def pool(attributes: str) -> OnnxGraph:
    body = f"(float[1, 2, 6, 7] x) => (float[1, 2, H, W] y) {{ y = MaxPool <ceil_mode = 1, {attributes}> (x) }}"
    return parse(f"{HEADER} g {body}")


@pytest.mark.parametrize(
    ("attributes", "stays"),
    [
        ("kernel_shape = [2, 3], strides = [2, 2]", False),  # the windows end where the input ends
        ("kernel_shape = [1, 1], strides = [4, 4]", False),  # the added windows start after the input
        ("kernel_shape = [2, 2], strides = [2, 2]", True),
        ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", True),
    ],
)
def test_it_is_removed_if_it_adds_no_window(attributes: str, stays: bool) -> None:
    before = pool(attributes)
    before.model.graph.outputs[0].shape = None  # ONNX's shape inference counts windows that start after the input
    after = before.apply("eliminate_ceil_mode", eliminate_ceil_mode)
    (node,) = after.model.graph
    assert ("ceil_mode" in node.attributes) == stays
    after.model.graph.outputs[0].shape = ir.Shape(run(before)["y"].shape)
    assert_same(before, after, exact=True)
