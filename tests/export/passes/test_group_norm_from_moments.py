"""GroupNorm from per-channel moments."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes.group_norm_from_moments import group_norm_from_moments
from tests.helpers.graphs import HEADER, assert_same, noise, parse

NORM = f"""{HEADER} g (float[N, 4, %s] x) => (float[%s] y) <float[N, 4, %s] n> {{
    %s
    n = GroupNormalization <num_groups = %d, epsilon = 0.01> (c, scale, bias)
    %s
}}"""


LARGE = "64, 64"  # with 4 channels, more than the compiler normalizes in one kernel


def shapes(graph: OnnxGraph) -> dict[str, tuple[int | str | None, ...]]:
    """Return the inferred shape of each intermediate tensor."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(graph.model))
    return {
        info.name: tuple(dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim)
        for info in inferred.graph.value_info
    }


def norm(reader: str, shape: str, *, source: str = "c = Relu (x)", size: str = LARGE, groups: int = 1) -> OnnxGraph:
    return parse(
        NORM % (size, shape, size, source, groups, reader),
        scale=noise(4, offset=1), bias=noise(4, seed=2), v=noise(4, 4, 1, 1), w=noise(6, 4, 2, 2),
        pixels=np.asarray([2, -1]),
    )  # fmt: skip


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("reader", "shape"),
    [
        ("y = Conv <strides = [2, 2]> (n, w)", "N, 6, 32, 32"),
        ("y = Relu (n)", f"N, 4, {LARGE}"),
        ("a = Relu (n)  b = Conv (n, v)  y = Add (a, b)", f"N, 4, {LARGE}"),
    ],
)
def test_a_large_norm_is_computed_from_moments(reader: str, shape: str, channels_last: bool) -> None:
    before = norm(reader, shape)
    after = before.apply(
        "group_norm_from_moments", functools.partial(group_norm_from_moments, channels_last=channels_last)
    )
    assert {"GroupNormalization", "InstanceNormalization"}.isdisjoint(after.operators)
    assert after.operators["ReduceMean"] == 4
    assert after.operators["Transpose"] == (2 if channels_last and reader.startswith("y = Conv") else 0)
    assert_same(before, after)


def test_after_a_convolution_the_first_sums_are_over_channels() -> None:
    before = norm("y = Relu (n)", f"N, 4, {LARGE}", source="c = Conv (x, v)")
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, channels_last=True))
    first = next(node for node in after.model.graph if node.op_type == "ReduceMean")
    assert constant(first.inputs[1]) == [1]
    assert_same(before, after)


@pytest.mark.parametrize(
    ("reader", "shape"),
    [
        ("y = ReduceMean <keepdims = 0> (n, pixels)", "N, 4"),
        ("y = ReduceMean (n, pixels)", "N, 4, 1, 1"),
        ("y = GlobalAveragePool (n)", "N, 4, 1, 1"),
        ("a = GlobalAveragePool (n)  y = Flatten (a)", "N, 4"),
    ],
)
def test_a_mean_over_pixels_is_computed_from_moments_only(reader: str, shape: str) -> None:
    before = norm(reader, shape)
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, channels_last=True))
    (division,) = (node for node in after.model.graph if node.op_type == "Div")
    assert "GlobalAveragePool" not in after.operators
    assert list(shapes(after)[str(division.outputs[0].name)])[1:] == [1, 1, 4]
    assert_same(before, after, within=1e-4)  # sums of 4,096 terms, added sequentially


@pytest.mark.parametrize(("size", "groups"), [("64, 48", 1), (LARGE, 2)])
def test_small_norms_and_several_groups_stay(size: str, groups: int) -> None:
    before = norm("y = Relu (n)", f"N, 4, {size}", size=size, groups=groups)
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, channels_last=True))
    assert after.operators == before.operators
