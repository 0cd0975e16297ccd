"""Folding of affine maps into the following layer."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.decompose_group_norm import decompose_group_norm
from edgevit.export.passes.fuse_affine import fuse_affine
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, batchnorm_parameters, noise, parse

GROUP_NORM = f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[%s] y) {{
    a = GroupNormalization <num_groups = 1> (x, scale, bias)
    y = %s
}}"""


@pytest.mark.parametrize(
    ("follower", "shape", "tensors"),
    [
        ("Conv (a, w)", "N, 6, 6, 6", {"w": noise(6, 4, 1, 1)}),
        ("Conv <strides = [2, 2]> (a, w, b)", "N, 6, 3, 3", {"w": noise(6, 4, 2, 2), "b": noise(6)}),
        ("Conv <group = 2> (a, w)", "N, 6, 6, 6", {"w": noise(6, 2, 1, 1)}),
    ],
)
def test_an_affine_map_is_folded_into_a_convolution_without_padding(
    follower: str, shape: str, tensors: dict[str, Array]
) -> None:
    before = parse(GROUP_NORM % (shape, follower), scale=noise(4, offset=1), bias=noise(4, seed=2), **tensors)
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after)
    decomposed = after.apply("decompose_group_norm", decompose_group_norm)
    assert {"Mul", "Add"}.isdisjoint(decomposed.operators)  # no affine map remains
    assert_same(before, decomposed)


def test_an_affine_map_before_a_padded_convolution_stays() -> None:
    """The padded zeros are not normalized; folding would map them."""
    before = parse(
        GROUP_NORM % ("N, 6, 6, 6", "Conv <pads = [1, 1, 1, 1]> (a, w)"),
        scale=noise(4, offset=1), bias=noise(4, seed=2), w=noise(6, 4, 3, 3),
    )  # fmt: skip
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after)
    decomposed = after.apply("decompose_group_norm", decompose_group_norm)
    assert decomposed.operators["Mul"] == decomposed.operators["Add"] == 1


def test_an_affine_map_is_folded_through_a_mean_over_pixels() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[N, 5] y) <float[N, 4, 6, 6] a> {{
            a = GroupNormalization <num_groups = 1> (x, scale, bias)
            axes = Constant <value_ints = [2, 3]> ()
            m = ReduceMean <keepdims = 0> (a, axes)
            y = Gemm <transB = 1> (m, w, b)
        }}""",
        scale=noise(4, offset=1), bias=noise(4, seed=2), w=noise(5, 4), b=noise(5),
    )  # fmt: skip
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after)
    decomposed = after.apply("decompose_group_norm", decompose_group_norm)
    assert {"Mul", "Add"}.isdisjoint(decomposed.operators)


@pytest.mark.parametrize(("axis", "rows", "inputs"), [(0, 1, 8), (2, 8, 1)])
def test_an_affine_map_before_a_layer_of_another_width_stays(axis: int, rows: int, inputs: int) -> None:
    """Flattened along another axis, the layer's inputs are not the channels."""
    before = parse(
        f"""{HEADER} g (float[2, 4, 6, 6] x) => (float[{rows}, 5] y) {{
            a = GroupNormalization <num_groups = 1> (x, scale, bias)
            m = GlobalAveragePool (a)
            f = Flatten <axis = {axis}> (m)
            y = Gemm <transB = 1> (f, w, b)
        }}""",
        scale=noise(4, offset=1), bias=noise(4, seed=2), w=noise(5, inputs), b=noise(5),
    )  # fmt: skip
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after, exact=True)


def test_a_batchnorm_before_a_layer_is_folded() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) {{
            a = BatchNormalization (x, scale, bias, mean, var)
            y = Conv (a, w)
        }}""",
        w=noise(6, 4, 1, 1),
        **batchnorm_parameters(4),
    )
    after = before.apply("fuse_affine", fuse_affine)
    assert dict(after.operators) == {"Conv": 1}
    assert_same(before, after)


def test_a_norm_by_the_statistics_of_its_input_stays() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) {{
            a = BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)
            y = Conv (a, w)
        }}""",
        w=noise(6, 4, 1, 1),
        **batchnorm_parameters(4),
    )
    after = before.apply("fuse_affine", fuse_affine)
    assert after.operators["BatchNormalization"] == 1


def test_constants_of_other_operators_may_be_strings() -> None:
    before = parse(
        f"{HEADER} g (float[N, 4] x, string[1] s) => (bool[1] y) {{ y = Equal (s, t) }}", t=np.asarray(["a"])
    )
    assert before.apply("fuse_affine", fuse_affine).operators == before.operators
