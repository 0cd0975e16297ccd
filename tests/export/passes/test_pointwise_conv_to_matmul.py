"""1x1 convolutions as matmuls in NHWC."""

from __future__ import annotations

import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.pointwise_conv_to_matmul import pointwise_conv_to_matmul
from tests.helpers.graphs import HEADER, assert_same, noise, parse

MIXED = f"""{HEADER} g (float[%s, 5, 4, 6] x, float[%s, 6, 5, 4] z) => (%s) {{
    a = LayerNormalization (x, scale, bias)
    b = Transpose <perm = [0, 3, 1, 2]> (a)
    %s
}}"""


def mixed(readers: str, outputs: str, batch: str = "N") -> OnnxGraph:
    return parse(
        MIXED % (batch, batch, outputs, readers),
        scale=noise(6, offset=1), bias=noise(6, seed=2), v=noise(8, 6, 1, 1), w=noise(6, 8, 1, 1),
        s=noise(8, seed=5), t=noise(6, seed=6), g=noise(8, 3, 1, 1), k=noise(6, 6, 2, 2),
    )  # fmt: skip


@pytest.mark.parametrize("batch", ["N", "2"])
@pytest.mark.parametrize("residual", ["Add (z, e)", "Add (e, z)"])
def test_a_block_of_pointwise_convolutions_becomes_matmuls(residual: str, batch: str) -> None:
    block = f"c = Conv (b, v, s)  d = Gelu (c)  e = Conv (d, w, t)  y = {residual}"
    before = mixed(block, f"float[{batch}, 6, 5, 4] y", batch)
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert [node.op_type for node in after.model.graph if node.op_type != "Add"] == [
        "LayerNormalization", "MatMul", "Gelu", "MatMul", "Transpose", "Transpose",
    ]  # fmt: skip
    assert "Conv" not in after.operators
    assert_same(before, after)


def test_transposes_between_blocks_cancel() -> None:
    block = (
        "c = Conv (b, v)  d = Conv (c, w)  e = Transpose <perm = [0, 2, 3, 1]> (d)  y = LayerNormalization (e, scale)"
    )
    before = mixed(block, "float[N, 5, 4, 6] y")
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert dict(after.operators) == {"LayerNormalization": 2, "MatMul": 2}
    assert_same(before, after)


def test_a_value_read_in_nchw_stays_in_nchw() -> None:
    before = mixed(
        "c = Conv (b, v)  y = Conv (c, w)  e = Softmax <axis = 1> (c)", "float[N, 6, 5, 4] y, float[N, 8, 5, 4] e"
    )
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert dict(after.operators) == {"LayerNormalization": 1, "MatMul": 1, "Transpose": 1, "Conv": 1, "Softmax": 1}
    assert_same(before, after)


@pytest.mark.parametrize(
    ("readers", "outputs"),
    [
        ("y = Conv (b, k)", "float[N, 6, 4, 3] y"),  # not 1x1
        ("y = Conv <strides = [2, 2]> (b, v)", "float[N, 8, 3, 2] y"),
        ("y = Conv <pads = [1, 1, 1, 1]> (b, v)", "float[N, 8, 7, 6] y"),
        ("y = Conv <group = 2> (b, g)", "float[N, 8, 5, 4] y"),
        ("u = Exp (v)  y = Conv (b, u)", "float[N, 8, 5, 4] y"),  # computed weights
        ("y = Gelu (b)", "float[N, 6, 5, 4] y"),  # no convolution
        ("c = Transpose <perm = [0, 3, 2, 1]> (a)  y = Conv (c, v)", "float[N, 8, 4, 5] y, float[N, 6, 5, 4] b"),
        ("y = Conv (b, v)  e = Relu (b)", "float[N, 8, 5, 4] y, float[N, 6, 5, 4] e"),
        ("y = Conv (b, v)", "float[N, 8, 5, 4] y, float[N, 6, 5, 4] b"),
    ],
)
def test_other_convolutions_stay(readers: str, outputs: str) -> None:
    before = mixed(readers, outputs)
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
