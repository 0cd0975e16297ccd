"""Each pass on a small graph: the operators it leaves, the numbers it must not change, and what it must not touch."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes import specialize
from edgevit.export.passes.canonicalize_attention import canonicalize_attention
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.decompose_gelu import decompose_gelu
from edgevit.export.passes.decompose_group_norm import decompose_group_norm
from edgevit.export.passes.downgrade_opset import downgrade_opset
from edgevit.export.passes.eliminate_slices import eliminate_slices
from edgevit.export.passes.fold_attention_bias import fold_attention_bias
from edgevit.export.passes.fold_constants import fold_constants
from edgevit.export.passes.freeze_reshape_shapes import freeze_reshape_shapes
from edgevit.export.passes.fuse_affine import fuse_affine
from edgevit.export.passes.fuse_batchnorm import fuse_batchnorm
from edgevit.export.passes.fuse_channel_shuffle import fuse_channel_shuffle
from edgevit.export.passes.fuse_slices import fuse_slices
from edgevit.export.passes.group_norm_from_moments import group_norm_from_moments
from edgevit.export.passes.pointwise_conv_to_matmul import pointwise_conv_to_matmul
from edgevit.export.passes.push_gather_through_concat import push_gather_through_concat
from edgevit.export.passes.push_scale_to_query import push_scale_to_query
from edgevit.types import Array, Precision
from tests.helpers.graphs import assert_same, parse, run

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


def weights(*shape: int, seed: int = 1, offset: float = 0.0) -> Array:
    return (offset + np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def ones_like_statistics(channels: int) -> dict[str, Array]:
    """BatchNormalization's four vectors, none of them neutral."""
    return {
        "scale": weights(channels, seed=2, offset=1),
        "bias": weights(channels, seed=3),
        "mean": weights(channels, seed=4),
        "var": np.abs(weights(channels, seed=5)) + 0.5,
    }


def test_tidy_keeps_one_of_each() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{
            one = Constant <value_floats = [1.0]> ()
            again = Constant <value_floats = [1.0]> ()
            a = Add (x, one)
            b = Add (x, again)
            c = Identity (b)
            unused = Exp (x)
            y = Mul (a, c)
        }}"""
    )
    after = before.apply("cleanup", cleanup)
    assert dict(after.operators) == {"Add": 1, "Mul": 1}
    assert_same(before, after, exact=True)


@pytest.mark.parametrize("scaling", ["Mul (scores, c)", "Mul (c, scores)", "Div (scores, c)"])
@pytest.mark.parametrize("mask", ["Identity (scaled)", "Add (scaled, bias)", "Add (bias, scaled)"])
def test_scale_query_scales_before_the_product(scaling: str, mask: str) -> None:
    before = parse(
        f"""{HEAD} g (float[N, 2, 5, 4] q, float[N, 2, 4, 5] k) => (float[N, 2, 5, 5] y) {{
            scores = MatMul (q, k)
            scaled = {scaling}
            masked = {mask}
            y = Softmax <axis = -1> (masked)
        }}""",
        c=np.asarray(0.3, np.float32),
        bias=weights(5, 5),
    ).apply("cleanup", cleanup)
    after = before.apply("push_scale_to_query", push_scale_to_query)
    names = [node.op_type for node in after.model.graph]
    assert names.index("Mul") < names.index("MatMul") and names.count("Mul") == 1 and "Div" not in names
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "scores = MatMul (q, k) scaled = Mul (scores, c) y = Relu (scaled)",  # no attention
        "scores = MatMul (q, k) scaled = Div (c, scores) y = Softmax (scaled)",  # not linear
        "scores = MatMul (q, k) scaled = Mul (scores, each) y = Softmax (scaled)",  # not one number
        "scores = MatMul (q, k) scaled = Mul (scores, c) s = Softmax (scaled) y = Add (s, scores)",  # read elsewhere
        "scores = MatMul (q, w) scaled = Mul (scores, c) y = Softmax (scaled)",  # weights: not attention's product
    ],
)
def test_scale_query_leaves_alone_what_is_no_scaled_attention(body: str) -> None:
    before = parse(
        f"{HEAD} g (float[N, 5, 4] q, float[N, 4, 5] k) => (float[N, 5, 5] y) {{ {body} }}",
        c=np.asarray(0.3, np.float32),
        each=weights(5),
        w=weights(4, 5),
    )
    after = before.apply("push_scale_to_query", push_scale_to_query)
    assert after.operators == before.operators
    assert [node.op_type for node in after.model.graph] == [node.op_type for node in before.model.graph]


def test_fold_constants_computes_shape_arithmetic() -> None:
    before = parse(
        f"""{HEAD} g (float[2, 4, 3] x) => (float[2, 12] y) {{
            shape = Shape (x)
            zero = Constant <value_ints = [0]> ()
            batch = Gather (shape, zero)
            rest = Constant <value_ints = [12]> ()
            target = Concat <axis = 0> (batch, rest)
            y = Reshape (x, target)
        }}"""
    )
    after = before.apply("fold_constants", fold_constants)
    assert dict(after.operators) == {"Reshape": 1}
    assert_same(before, after, exact=True)


def test_fold_constants_keeps_a_tiny_epsilon() -> None:
    """onnxscript's default rules take `x + 1e-8` for `x`; linear attention divides by it."""
    text = f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Add (x, epsilon) }}"
    before = parse(text, epsilon=np.asarray(1e-8, np.float32))
    assert dict(before.apply("fold_constants", fold_constants).operators) == {"Add": 1}


SLICES = f"""{HEAD} g (float[N, 8, 5, 5] x) => (float[N, 4, 5, 4] y) {{
    four = Constant <value_ints = [4]> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    three = Constant <value_ints = [3]> ()
    last = Constant <value_ints = [9223372036854775807]> ()
    a = Slice (x, zero, four, one)
    %s
    y = Slice (a, one, last, three)
}}"""


@pytest.mark.parametrize(("axis", "end", "left"), [(0, 2**63 - 1, 0), (1, 8, 0), (1, 7, 1)])
def test_drop_slices_that_keep_everything(axis: int, end: int, left: int) -> None:
    before = parse(
        f"""{HEAD} g (float[N, 8] x) => (float[N, M] y) {{
            start = Constant <value_ints = [0]> ()
            end = Constant <value_ints = [{end}]> ()
            axis = Constant <value_ints = [{axis}]> ()
            a = Slice (x, start, end, axis)
            y = Relu (a)
        }}"""
    )
    after = before.apply("eliminate_slices", eliminate_slices)
    assert after.operators["Slice"] == left
    assert_same(before, after, exact=True)


def test_merge_slices_along_different_axes() -> None:
    before = parse(SLICES % "")
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 1
    assert_same(before, after, exact=True)


def test_merge_slices_keeps_a_slice_that_others_read() -> None:
    before = parse((SLICES % "z = Relu (a)").replace("[N, 4, 5, 4] y)", "[N, 4, 5, 4] y, float[N, 4, 5, 5] z)"))
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 2
    assert_same(before, after, exact=True)


def test_merge_slices_leaves_slices_of_one_axis() -> None:
    text = (SLICES % "").replace("(a, one, last, three)", "(a, one, last, one)")
    before = parse(text.replace("4, 5, 4] y", "3, 5, 5] y"))
    after = before.apply("fuse_slices", fuse_slices)
    assert after.operators["Slice"] == 2
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("layer", "shapes", "weight"),
    [
        ("Conv <pads = [1, 1, 1, 1]> (x, w)", ("N, 4, 6, 6", "N, 6, 6, 6"), weights(6, 4, 3, 3)),
        ("Conv <group = 2> (x, w)", ("N, 4, 6, 6", "N, 6, 6, 6"), weights(6, 2, 1, 1)),
        ("Gemm (x, w)", ("N, 4", "N, 6"), weights(4, 6)),
        ("Gemm <transB = 1> (x, w)", ("N, 4", "N, 6"), weights(6, 4)),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_fold_batchnorm_behind_a_layer(layer: str, shapes: tuple[str, str], weight: Array, *, with_bias: bool) -> None:
    layer = layer.replace("w)", "w, b)") if with_bias else layer
    extra = {"b": weights(6, seed=9)} if with_bias else {}
    before = parse(
        f"""{HEAD} g (float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{
            a = {layer}
            y = BatchNormalization <epsilon = 0.001> (a, scale, bias, mean, var)
        }}""",
        w=weight,
        **extra,
        **ones_like_statistics(6),
    )
    after = before.apply("fuse_batchnorm", fuse_batchnorm)
    assert "BatchNormalization" not in after.operators
    assert after.node_count == 1
    assert_same(before, after)


def test_fold_batchnorm_leaves_a_layer_that_others_read() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y, float[N, 6, 6, 6] z) {{
            a = Conv (x, w)
            y = BatchNormalization (a, scale, bias, mean, var)
            z = Relu (a)
        }}""",
        w=weights(6, 4, 1, 1),
        **ones_like_statistics(6),
    )
    assert before.apply("fuse_batchnorm", fuse_batchnorm).operators["BatchNormalization"] == 1


GROUP_NORM = f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[%s] y) {{
    a = GroupNormalization <num_groups = 1> (x, scale, bias)
    y = %s
}}"""


@pytest.mark.parametrize(
    ("follower", "shape", "tensors"),
    [
        ("Conv (a, w)", "N, 6, 6, 6", {"w": weights(6, 4, 1, 1)}),
        ("Conv <strides = [2, 2]> (a, w, b)", "N, 6, 3, 3", {"w": weights(6, 4, 2, 2), "b": weights(6)}),
        ("Conv <group = 2> (a, w)", "N, 6, 6, 6", {"w": weights(6, 2, 1, 1)}),
    ],
)
def test_fold_affine_into_a_convolution_without_padding(follower: str, shape: str, tensors: dict[str, Array]) -> None:
    before = parse(GROUP_NORM % (shape, follower), scale=weights(4, offset=1), bias=weights(4, seed=2), **tensors)
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after)
    lowered = after.apply("lower", functools.partial(decompose_group_norm, form="instance"))
    assert {"Mul", "Add"}.isdisjoint(lowered.operators)  # the affine map is gone
    assert_same(before, lowered)


def test_fold_affine_leaves_a_padded_convolution() -> None:
    """The zeros of the padding are not normalised: folding would map them too."""
    before = parse(
        GROUP_NORM % ("N, 6, 6, 6", "Conv <pads = [1, 1, 1, 1]> (a, w)"),
        scale=weights(4, offset=1), bias=weights(4, seed=2), w=weights(6, 4, 3, 3),
    )  # fmt: skip
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after)
    lowered = after.apply("lower", functools.partial(decompose_group_norm, form="instance"))
    assert lowered.operators["Mul"] == lowered.operators["Add"] == 1


def test_fold_affine_through_a_mean_over_pixels() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 5] y) <float[N, 4, 6, 6] a> {{
            a = GroupNormalization <num_groups = 1> (x, scale, bias)
            axes = Constant <value_ints = [2, 3]> ()
            m = ReduceMean <keepdims = 0> (a, axes)
            y = Gemm <transB = 1> (m, w, b)
        }}""",
        scale=weights(4, offset=1), bias=weights(4, seed=2), w=weights(5, 4), b=weights(5),
    )  # fmt: skip
    after = before.apply("fuse_affine", fuse_affine)
    assert_same(before, after)
    lowered = after.apply("lower", functools.partial(decompose_group_norm, form="instance"))
    assert {"Mul", "Add"}.isdisjoint(lowered.operators)


def test_fold_affine_takes_a_batchnorm_in_front_of_a_layer() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) {{
            a = BatchNormalization (x, scale, bias, mean, var)
            y = Conv (a, w)
        }}""",
        w=weights(6, 4, 1, 1),
        **ones_like_statistics(4),
    )
    after = before.apply("fuse_affine", fuse_affine)
    assert dict(after.operators) == {"Conv": 1}
    assert_same(before, after)


# Tokens (N, 5, 6), the batch as the first argument says, whose channels are shuffled; then what reads them.
SHUFFLE = f"""{HEAD} g (float[%s, 5, 6] x) => (%s) {{
    pairs = Constant <value_ints = [-1, 2, 3]> ()
    whole = Constant <value_ints = [-1, 5, 6]> ()
    a = Reshape (x, pairs)
    b = Transpose <perm = [0, 2, 1]> (a)
    c = Reshape (b, whole)
    zero = Constant <value_int = 0> ()
    first = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    %s
}}"""


def shuffled(readers: str, outputs: str, weight: Array, *, batch: str = "N") -> OnnxGraph:
    return parse(
        SHUFFLE % (batch, outputs, readers),
        s=weights(6, offset=1), t=weights(6, seed=2), w=weight, v=weights(4, seed=4),
    ).apply("cleanup", cleanup)  # fmt: skip


@pytest.mark.parametrize("batch", ["3", "N"])
@pytest.mark.parametrize(
    ("readers", "shape", "weight"),
    [
        ("y = MatMul (c, w)", "5, 4", weights(6, 4)),
        ("y = MatMul (c, w)", "5, 4", weights(1, 6, 4)),
        ("d = LayerNormalization (c, s, t) y = MatMul (d, w)", "5, 4", weights(6, 4)),
        ("d = LayerNormalization <axis = 2> (c, s) y = MatMul (d, w)", "5, 4", weights(6, 4)),
        ("d = Gather <axis = 1> (c, zero) e = LayerNormalization (d, s, t) y = Gemm (e, w)", "4", weights(6, 4)),
        (
            "d = LayerNormalization (c, s, t) e = ReduceMean <keepdims = 0> (d, one) y = Gemm <transB = 1> (e, w, v)",
            "4",
            weights(4, 6),
        ),
        ("d = Slice (c, first, two, one) e = LayerNormalization (d, s, t) y = MatMul (e, w)", "2, 4", weights(6, 4)),
    ],
)
def test_fold_shuffle_into_a_norm_and_a_layer(readers: str, shape: str, weight: Array, batch: str) -> None:
    before = shuffled(readers, f"float[{batch}, {shape}] y", weight, batch=batch)
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert before.operators - after.operators == {"Reshape": 2, "Transpose": 1}
    assert_same(before, after)


@pytest.mark.parametrize(
    ("readers", "shape"),
    [
        pytest.param("y = LayerNormalization (c, s, t)", "5, 6", id="no layer behind"),
        pytest.param("d = Softmax (c) y = MatMul (d, w)", "5, 4", id="an operator that is not known"),
        pytest.param("d = LayerNormalization <axis = 1> (c, m) y = MatMul (d, w)", "5, 4", id="a scale for each token"),
        pytest.param("d = LayerNormalization (c, o) y = MatMul (d, w)", "5, 4", id="one scale for all channels"),
        pytest.param("d = Gather <axis = 2> (c, reversed) y = MatMul (d, w)", "5, 4", id="channels picked"),
        pytest.param("d = Slice (c, first, six, two) y = MatMul (d, w)", "5, 4", id="channels sliced"),
        pytest.param("d = ReduceMean (c, two) y = MatMul (d, n)", "5, 4", id="channels averaged"),
        pytest.param("y = MatMul (f, c)", "4, 6", id="the second factor"),
        pytest.param(
            "d = Gather <axis = 1> (c, zero) e = Gather <axis = 1> (x, zero) y = Gemm (e, h, d)", "6", id="the bias"
        ),
        pytest.param("d = Transpose <perm = [0, 2, 1]> (x) y = MatMul (c, d)", "5, 5", id="a weight that is computed"),
    ],
)
def test_fold_shuffle_leaves_what_is_read_otherwise(readers: str, shape: str) -> None:
    before = parse(
        SHUFFLE % ("N", f"float[N, {shape}] y", readers),
        s=weights(6, offset=1), t=weights(6, seed=2), w=weights(6, 4, seed=3), m=weights(5, 6), o=weights(1),
        n=weights(1, 4), f=weights(4, 5), h=weights(6, 6), reversed=np.arange(6)[::-1], six=np.asarray([6]),
    )  # fmt: skip
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert after.operators["Transpose"] == before.operators["Transpose"]
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("readers", "outputs"),
    [
        ("y = MatMul (c, w) z = Relu (c)", "float[N, 5, 4] y, float[N, 5, 6] z"),
        ("y = MatMul (c, w)", "float[N, 5, 4] y, float[N, 5, 6] c"),
        ("d = LayerNormalization (c, s, t) y = MatMul (d, w) z = Relu (d)", "float[N, 5, 4] y, float[N, 5, 6] z"),
    ],
)
def test_fold_shuffle_leaves_what_others_read_too(readers: str, outputs: str) -> None:
    before = shuffled(readers, outputs, weights(6, 4))
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("perm = [0, 2, 1]", "perm = [1, 2, 0]"),  # the tokens move too
        ("[-1, 2, 3]", "[-1, 5, 3]"),  # (2 N, 5, 3): tokens and channels are mixed
        ("[-1, 5, 6]", "[-1, 10, 3]"),  # back to another width
    ],
)
def test_fold_shuffle_leaves_other_permutations(old: str, new: str) -> None:
    text = SHUFFLE % ("N", "float[N, A, 4] y", "y = MatMul (c, w)")
    before = parse(text.replace(old, new), w=weights(3 if "10, 3" in new else 6, 4))
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert after.operators["Transpose"] == 1
    assert_same(before, after, exact=True)


GATHER = f"""{HEAD} g (float[N, 5, 2] a, float[N, 5, 4] b) => (%s) {{
    c = Concat <axis = %d> (a, b)
    y = Gather <axis = %d> (c, indices)
    %s
}}"""


@pytest.mark.parametrize(("across", "along"), [(2, 1), (-1, 1), (-1, -2), (2, 0)])
@pytest.mark.parametrize("indices", [np.asarray(1), np.asarray([-1]), np.asarray([[0, 2]])])
def test_gather_first_picks_before_it_joins(across: int, along: int, indices: Array) -> None:
    shape = ["N", "5", "6"]
    shape[along : along + 1 or None] = [str(size) for size in indices.shape]
    before = parse(GATHER % (f"float[{', '.join(shape)}] y", across, along, ""), indices=indices)
    after = before.apply("push_gather_through_concat", push_gather_through_concat)
    assert dict(after.operators) == {"Gather": 2, "Concat": 1}
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("outputs", "along", "others"),
    [
        ("float[N, 5, 2] y", 2, ""),  # what is picked depends on how they are joined
        ("float[N, 2, 6] y, float[N, 5, 6] z", 1, "z = Relu (c)"),
        ("float[N, 2, 6] y, float[N, 5, 6] c", 1, ""),
    ],
)
def test_gather_first_leaves_what_is_needed_whole(outputs: str, along: int, others: str) -> None:
    before = parse(GATHER % (outputs, 2, along, others), indices=np.asarray([3, 1]))
    after = before.apply("push_gather_through_concat", push_gather_through_concat)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


NORM = f"""{HEAD} g (float[N, 4, %s] x) => (float[%s] y) <float[N, 4, %s] n> {{
    %s
    n = GroupNormalization <num_groups = %d, epsilon = 0.01> (c, scale, bias)
    %s
}}"""
LARGE = "64, 64"  # of 4 channels: beyond what the compiler normalises in one kernel


def shapes(graph: OnnxGraph) -> dict[str, tuple[int | str | None, ...]]:
    """What shape inference says of each tensor."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(graph.model))
    return {
        info.name: tuple(dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim)
        for info in inferred.graph.value_info
    }


def norm(reader: str, shape: str, *, maker: str = "c = Relu (x)", size: str = LARGE, groups: int = 1) -> OnnxGraph:
    return parse(
        NORM % (size, shape, size, maker, groups, reader),
        scale=weights(4, offset=1), bias=weights(4, seed=2), v=weights(4, 4, 1, 1), w=weights(6, 4, 2, 2),
        pixels=np.asarray([2, -1]),
    )  # fmt: skip


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize(
    ("reader", "shape"),
    [
        ("y = Conv <strides = [2, 2]> (n, w)", "N, 6, 32, 32"),
        ("y = Relu (n)", f"N, 4, {LARGE}"),
        ("a = Relu (n)  b = Conv (n, v)  y = Add (a, b)", f"N, 4, {LARGE}"),
    ],
)
def test_norm_by_moments(reader: str, shape: str, turned: bool) -> None:
    before = norm(reader, shape)
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, turned=turned))
    assert {"GroupNormalization", "InstanceNormalization"}.isdisjoint(after.operators)
    assert after.operators["ReduceMean"] == 4
    assert after.operators["Transpose"] == (2 if turned and reader.startswith("y = Conv") else 0)
    assert_same(before, after)


def test_norm_by_moments_starts_at_the_pixels_behind_a_convolution() -> None:
    before = norm("y = Relu (n)", f"N, 4, {LARGE}", maker="c = Conv (x, v)")
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, turned=True))
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
def test_norm_by_moments_averages_without_normalising_a_pixel(reader: str, shape: str) -> None:
    before = norm(reader, shape)
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, turned=True))
    (division,) = (node for node in after.model.graph if node.op_type == "Div")
    assert "GlobalAveragePool" not in after.operators
    assert list(shapes(after)[str(division.outputs[0].name)])[1:] == [1, 1, 4]
    assert_same(before, after, within=1e-4)  # sums of 4,096 terms, by an operator that adds one after the other


@pytest.mark.parametrize(("size", "groups"), [("64, 48", 1), (LARGE, 2)])
def test_norm_by_moments_leaves_what_is_small_and_groups(size: str, groups: int) -> None:
    before = norm("y = Relu (n)", f"N, 4, {size}", size=size, groups=groups)
    after = before.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, turned=True))
    assert after.operators == before.operators


MIXED = f"""{HEAD} g (float[%s, 5, 4, 6] x, float[%s, 6, 5, 4] z) => (%s) {{
    a = LayerNormalization (x, scale, bias)
    b = Transpose <perm = [0, 3, 1, 2]> (a)
    %s
}}"""


def mixed(readers: str, outputs: str, batch: str = "N") -> OnnxGraph:
    return parse(
        MIXED % (batch, batch, outputs, readers),
        scale=weights(6, offset=1), bias=weights(6, seed=2), v=weights(8, 6, 1, 1), w=weights(6, 8, 1, 1),
        s=weights(8, seed=5), t=weights(6, seed=6), g=weights(8, 3, 1, 1), k=weights(6, 6, 2, 2),
    )  # fmt: skip


@pytest.mark.parametrize("batch", ["N", "2"])
@pytest.mark.parametrize("residual", ["Add (z, e)", "Add (e, z)"])
def test_channels_last_carries_a_block_of_pointwise_convolutions(residual: str, batch: str) -> None:
    block = f"c = Conv (b, v, s)  d = Gelu (c)  e = Conv (d, w, t)  y = {residual}"
    before = mixed(block, f"float[{batch}, 6, 5, 4] y", batch)
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert [node.op_type for node in after.model.graph if node.op_type != "Add"] == [
        "LayerNormalization", "MatMul", "Gelu", "MatMul", "Transpose", "Transpose",
    ]  # fmt: skip
    assert "Conv" not in after.operators
    assert_same(before, after)


def test_channels_last_spares_the_way_back_to_the_next_norm() -> None:
    block = (
        "c = Conv (b, v)  d = Conv (c, w)  e = Transpose <perm = [0, 2, 3, 1]> (d)  y = LayerNormalization (e, scale)"
    )
    before = mixed(block, "float[N, 5, 4, 6] y")
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert dict(after.operators) == {"LayerNormalization": 2, "MatMul": 2}
    assert_same(before, after)


def test_channels_last_keeps_what_is_read_with_the_channels_first() -> None:
    before = mixed(
        "c = Conv (b, v)  y = Conv (c, w)  e = Softmax <axis = 1> (c)", "float[N, 6, 5, 4] y, float[N, 8, 5, 4] e"
    )
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert dict(after.operators) == {"LayerNormalization": 1, "MatMul": 1, "Transpose": 1, "Conv": 1, "Softmax": 1}
    assert_same(before, after)


@pytest.mark.parametrize(
    ("readers", "outputs"),
    [
        ("y = Conv (b, k)", "float[N, 6, 4, 3] y"),  # not of one pixel
        ("y = Conv <strides = [2, 2]> (b, v)", "float[N, 8, 3, 2] y"),
        ("y = Conv <pads = [1, 1, 1, 1]> (b, v)", "float[N, 8, 7, 6] y"),
        ("y = Conv <group = 2> (b, g)", "float[N, 8, 5, 4] y"),
        ("u = Exp (v)  y = Conv (b, u)", "float[N, 8, 5, 4] y"),  # weights that are computed
        ("y = Gelu (b)", "float[N, 6, 5, 4] y"),  # nothing to gain
        ("c = Transpose <perm = [0, 3, 2, 1]> (a)  y = Conv (c, v)", "float[N, 8, 4, 5] y, float[N, 6, 5, 4] b"),
        ("y = Conv (b, v)  e = Relu (b)", "float[N, 8, 5, 4] y, float[N, 6, 5, 4] e"),
        ("y = Conv (b, v)", "float[N, 8, 5, 4] y, float[N, 6, 5, 4] b"),
    ],
)
def test_channels_last_leaves_the_rest(readers: str, outputs: str) -> None:
    before = mixed(readers, outputs)
    after = before.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("target", "precision", "norms", "products"),
    [
        ("trt", "fp32", 0, 1),
        ("trt-rtx", "fp16", 0, 1),
        ("trt", "int8", 0, 0),  # the quantised convolution stays as the calibration saw it
        ("ort", "fp32", 1, 0),
        ("onnx", "fp16", 1, 0),
    ],
)
def test_kernels_are_spared_for_compilers(target: str, precision: Precision, norms: int, products: int) -> None:
    before = norm("y = Conv (n, v)", f"N, 4, {LARGE}").apply("fuse_affine", fuse_affine)
    after = specialize(before, target, precision=precision)
    assert after.operators["InstanceNormalization"] == norms
    assert after.operators["MatMul"] == products


def test_lower_group_norm_with_an_affine_map() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{
            y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, scale, bias)
        }}""",
        scale=weights(4, offset=1),
        bias=weights(4, seed=2),
    )
    after = before.apply("lower", functools.partial(decompose_group_norm, form="instance"))
    assert dict(after.operators) == {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1, "Add": 1}
    assert_same(before, after)


HEADS = f"""{HEAD} g (float[%s, 5, 12] x) => (float[%s, 5, 12] y%s) <float[%s, 5, 36] b, float[%s, 3, 5, 5] f> {{
    a = MatMul (x, w)
    b = Add (a, bias)
    q, k, v = Split <axis = -1, num_outputs = 3> (b)
    q1 = Reshape (q, heads)  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)  q3 = Mul (q2, c)
    k1 = Reshape (k, heads)  k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v1 = Reshape (v, heads)  v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    d = MatMul (q3, k2)
    e = %s
    f = Softmax <axis = %d> (e)
    g = MatMul (f, v2)
    h = Transpose <perm = [0, 2, 1, 3]> (g)
    i = Reshape (h, tokens)
    j = MatMul (i, u)
    y = Add (j, p)
    %s
}}"""


def heads(
    *, batch: str = "N", scores: str = "Identity (d)", axis: int = -1, more: str = "", outputs: str = ""
) -> OnnxGraph:
    return parse(
        HEADS % (batch, batch, outputs, batch, batch, scores, axis, more),
        w=weights(12, 36), bias=weights(36, seed=2), u=weights(12, 12, seed=3), p=weights(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), tokens=np.asarray([0, 5, 12]),
        t=weights(3, 5, 5, seed=5), s=weights(3, 1, 1, seed=6), r=weights(1, 5, seed=7),
    ).apply("cleanup", cleanup)  # fmt: skip


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("scores", ["Identity (d)", "Add (d, t)", "Add (t, d)", "Div (d, c)"])
def test_bias_on_heads_keeps_the_bias_of_the_query_alone(scores: str, batch: str) -> None:
    before = heads(scores=scores, batch=batch)
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert after.operators == before.operators
    order = [node.op_type for node in after.model.graph]
    assert order[:2] == ["MatMul", "Split"]
    assert order[order.index("Add") - 1] == "Transpose"
    assert_same(before, after)


def test_bias_on_heads_of_windows() -> None:
    """Two windows a picture, their heads side by side, as in Swin."""
    before = parse(
        f"""{HEAD} g (float[6, 5, 12] x) => (float[6, 5, 12] y) {{
            a = MatMul (x, w)
            b = Add (bias, a)
            q, k, v = Split <axis = 2, num_outputs = 3> (b)
            q1 = Reshape (q, heads)  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)  q3 = Reshape (q2, all)
            k1 = Reshape (k, heads)  k2 = Transpose <perm = [0, 2, 1, 3]> (k1)  k3 = Reshape (k2, all)
            v1 = Reshape (v, heads)  v2 = Transpose <perm = [0, 2, 1, 3]> (v1)  v3 = Reshape (v2, all)
            k4 = Transpose <perm = [0, 1, 3, 2]> (k3)
            d = MatMul (q3, k4)
            e = Softmax (d)
            f = MatMul (e, v3)
            g = Reshape (f, windows)
            h = Transpose <perm = [0, 2, 1, 3]> (g)
            i = Reshape (h, tokens)
            j = MatMul (i, u)
            y = Add (j, p)
        }}""",
        w=weights(12, 36), bias=weights(36, seed=2), u=weights(12, 12, seed=3), p=weights(12, seed=4),
        heads=np.asarray([6, 5, 3, 4]), all=np.asarray([3, 6, 5, 4]), windows=np.asarray([6, 3, 5, 4]),
        tokens=np.asarray([6, 5, 12]),
    )  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    query = next(node for node in after.model.graph if node.op_type == "Add")
    assert np.asarray(constant(query.inputs[1])).shape == (1, 3, 1, 4)
    assert_same(before, after)


@pytest.mark.parametrize("joint", [True, False])
def test_bias_on_heads_of_three_layers(joint: bool) -> None:
    """Three linear layers in place of one; where a bias is read twice, nothing happens."""
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 4] y, float[N, 5, 4] z) {{
        a = MatMul (x, w)  q = Add (a, s)  q1 = Reshape (q, heads)  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
        b = MatMul (x, v)  k = Add (b, t)  k1 = Reshape (k, heads)  k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
        c = MatMul (x, u)  l = Add (c, r)  l1 = Reshape (l, heads)  l2 = Transpose <perm = [0, 2, 1, 3]> (l1)
        d = MatMul (q2, k2)  e = Softmax (d)  f = MatMul (e, l2)  g = Transpose <perm = [0, 2, 1, 3]> (f)
        h = Reshape (g, tokens)  i = MatMul (h, w)  y = Add (i, s)
        z = Relu ({"x" if joint else "k"})
    }}"""
    vectors = {name: weights(4, seed=seed) for seed, name in enumerate("str")}
    matrices = {name: weights(4, 4, seed=seed) for seed, name in enumerate("wvu", 5)}
    before = parse(text, **vectors, **matrices, heads=np.asarray([0, 5, 2, 2]), tokens=np.asarray([0, 5, 4]))
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert before.operators - after.operators == ({"Add": 2} if joint else {})
    assert_same(before, after)


@pytest.mark.parametrize(("widest", "moved"), [(12, True), (11, False)])
def test_bias_on_heads_leaves_a_single_wide_head(widest: int, moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["edgevit.export.passes.fold_attention_bias"], "_WIDEST", widest)
    before = parse(
        HEADS.replace("3, 5, 5] f", "1, 5, 5] f") % ("N", "N", "", "N", "N", "Identity (d)", -1, ""),
        w=weights(12, 36), bias=weights(36, seed=2), u=weights(12, 12, seed=3), p=weights(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 1, 12]), tokens=np.asarray([0, 5, 12]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert ([node.op_type for node in after.model.graph] != [node.op_type for node in before.model.graph]) == moved


def test_bias_on_heads_leaves_one_head_without_moves() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 4] y) {{
            a = MatMul (x, w)  q = Add (a, s)  b = MatMul (x, w)  k = Add (b, s)  k1 = Transpose <perm = [0, 2, 1]> (k)
            c = MatMul (x, w)  v = Add (c, s)  d = MatMul (q, k1)  e = Softmax (d)  f = MatMul (e, v)
            g = MatMul (f, w)  y = Add (g, s)
        }}""",
        w=weights(4, 4),
        s=weights(4),
    )
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    "changed",
    [
        {"axis": 2},  # over the queries
        {"axis": 1},
        {"scores": "Mul (d, s)"},  # a number a head would do too; only one number is looked for
        {"scores": "Relu (d)"},
        {"more": "z = Relu (b)", "outputs": ", float[N, 5, 36] z"},  # the sum is read elsewhere
        {"more": "z = Relu (k)", "outputs": ", float[N, 5, 12] z"},
        {"more": "z = Relu (k2)", "outputs": ", float[N, 3, 4, 5] z"},
        {"more": "z = Relu (g)", "outputs": ", float[N, 3, 5, 4] z"},
        {"more": "z = Relu (f)", "outputs": ", float[N, 3, 5, 5] z"},
        {"more": "z = Relu (d)", "outputs": ", float[N, 3, 5, 5] z"},
        {"more": "z = Relu (j)", "outputs": ", float[N, 5, 12] z"},
    ],
)
def test_bias_on_heads_leaves_the_rest(changed: dict[str, Any]) -> None:
    before = heads(**changed)
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert [node.op_type for node in after.model.graph] == [node.op_type for node in before.model.graph]
    assert_same(before, after, exact=True)


def test_bias_on_heads_leaves_a_sum_with_a_fourth_part() -> None:
    four = HEADS.replace("q, k, v =", "q, k, v, o =").replace("num_outputs = 3", "num_outputs = 4")
    before = parse(
        four.replace("36]", "48]") % ("N", "N", ", float[N, 5, 12] z", "N", "N", "Identity (d)", -1, "z = Relu (o)"),
        w=weights(12, 48), bias=weights(48, seed=2), u=weights(12, 12, seed=3), p=weights(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), tokens=np.asarray([0, 5, 12]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(("old", "new"), [
    ("v2 = Transpose <perm = [0, 2, 1, 3]> (v1)", "v2 = Reshape (v, mixed)"),  # heads made of tokens
    ("k2 = Transpose <perm = [0, 2, 3, 1]> (k1)", "k2 = Reshape (k, crossed)"),
    ("h = Transpose <perm = [0, 2, 1, 3]> (g)  i = Reshape (h, tokens)", "i = Reshape (g, tokens)"),
])  # fmt: skip
def test_bias_on_heads_leaves_moves_that_mix_tokens_and_channels(old: str, new: str) -> None:
    text = HEADS.replace("\n    i = ", "  i = ")
    assert old in text
    before = parse(
        text.replace(old, new) % ("N", "N", "", "N", "N", "Identity (d)", -1, ""),
        w=weights(12, 36), bias=weights(36, seed=2), u=weights(12, 12, seed=3), p=weights(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), tokens=np.asarray([0, 5, 12]),
        mixed=np.asarray([0, 3, 5, 4]), crossed=np.asarray([0, 3, 4, 5]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert_same(before, after)


ATTENTION = f"""{HEAD} g (float[N, 2, %s] a, float[N, 2, %s] b, float[N, 2, %s] v) => (float[N, 2, M, C] y%s) {{
    s = MatMul (a, b)
    w = Softmax <axis = %d> (s)
    %s
}}"""


@pytest.mark.parametrize("axis", [-2, 2])
def test_lower_attention_turns_what_is_computed_transposed(axis: int) -> None:
    """Keys (5, 16) times pixels (16, 9), normalised over the keys; values (12, 5) times that."""
    before = parse(ATTENTION % ("5, 16", "16, 9", "12, 5", "", axis, "y = MatMul (v, w)"))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == {"MatMul": 2, "Softmax": 1, "Transpose": 4}
    (softmax,) = (node for node in after.model.graph if node.op_type == "Softmax")
    assert softmax.attributes.get_int("axis", 0) == -1
    assert list(softmax.outputs[0].shape or ())[2:] == [9, 5]
    assert_same(before, after)


@pytest.mark.parametrize("axis", [-1, 3])
def test_lower_attention_pads_q_and_k_to_the_width_of_v(axis: int) -> None:
    before = parse(ATTENTION % ("9, 8", "8, 5", "5, 12", "", axis, "y = MatMul (w, v)"))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == {"MatMul": 2, "Softmax": 1, "Pad": 2}
    (scores, _) = (node for node in after.model.graph if node.op_type == "MatMul")
    assert [list(value.shape or ())[2:] for value in scores.inputs if value is not None] == [[9, 12], [12, 5]]
    assert_same(before, after)


@pytest.mark.parametrize(
    ("shapes", "outputs", "axis", "readers"),
    [
        pytest.param(("9, 8", "8, 5", "5, 8"), "", -1, "y = MatMul (w, v)", id="the form already"),
        pytest.param(("9, 8", "8, 5", "5, 17"), "", -1, "y = MatMul (w, v)", id="more zeros than numbers"),
        pytest.param(("9, 12", "12, 5", "5, 8"), "", -1, "y = MatMul (w, v)", id="wider than v"),
        pytest.param(("5, 8", "8, 9", "8, 5"), "", -2, "y = MatMul (v, w)", id="heads too narrow to fuse"),
        pytest.param(("5, 16", "16, 9", "16, 5"), "", -1, "y = MatMul (v, w)", id="not over the keys"),
        pytest.param(("12, 16", "16, 12", "12, 16"), "", -2, "y = MatMul (w, v)", id="not over the keys, not turned"),
        pytest.param(("9, 8", "8, 12", "5, 9"), "", -1, "y = MatMul (v, w)", id="as wide as the weights are long"),
        pytest.param(("9, 8", "8, 5", "5, 12"), "", -2, "y = MatMul (w, v)", id="no form to pad for"),
        pytest.param(
            ("5, 16", "16, 9", "16, 5"), ", float[N, 2, 5, 9] w", -2, "y = MatMul (v, w)", id="weights asked for"
        ),
        pytest.param(
            ("5, 16", "16, 9", "16, 5"), ", float[N, 2, 5, 9] s", -2, "y = MatMul (v, w)", id="logits asked for"
        ),
    ],
)
def test_lower_attention_leaves_the_rest(shapes: tuple[str, ...], outputs: str, axis: int, readers: str) -> None:
    before = parse(ATTENTION % (*shapes, outputs, axis, readers))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("target", "precision", "turned"), [("trt", "fp16", 1), ("trt", "fp32", 0), ("ort", "fp16", 0)]
)
def test_attention_is_lowered_where_it_fuses(target: str, precision: Precision, turned: int) -> None:
    before = parse(ATTENTION % ("5, 16", "16, 9", "12, 5", "", -2, "y = MatMul (v, w)"))
    assert specialize(before, target, precision=precision).operators["Transpose"] == 4 * turned


def test_lower_gelu_is_exact() -> None:
    before = parse(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu (x) }}")
    after = before.apply("decompose_gelu", decompose_gelu).apply("opset", functools.partial(downgrade_opset, opset=17))
    assert after.opset == 17
    assert "Gelu" not in after.operators
    assert_same(before, after)


def test_fix_reshapes_of_a_dynamic_batch() -> None:
    before = parse(
        f"""{HEAD} g (float[batch, 4, 6] x) => (float[batch, 24] y) {{
            n = Shape <start = 0, end = 1> (x)
            rest = Constant <value_ints = [24]> ()
            target = Concat <axis = 0> (n, rest)
            y = Reshape (x, target)
        }}"""
    )
    after = before.apply("freeze_reshape_shapes", freeze_reshape_shapes)
    assert dict(after.operators) == {"Reshape": 1}
    assert_same(before, after, exact=True)


def test_lower_opset_refuses_what_the_older_one_cannot_say() -> None:
    graph = parse(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu (x) }}")
    with pytest.raises(ExportError, match="needs opset 20"):
        downgrade_opset(graph.model, 19)
    with pytest.raises(ExportError, match="from 17 on, not at 16"):
        downgrade_opset(graph.model, 16)


def test_lower_opset_turns_axes_into_an_attribute() -> None:
    before = parse(
        f"""{HEAD} g (float[N, 4, 6] x) => (float[N, 4] y) {{
            axes = Constant <value_ints = [2]> ()
            y = ReduceMean <keepdims = 0, noop_with_empty_axes = 0> (x, axes)
        }}"""
    )
    assert_same(before, specialize(before.apply("cleanup", cleanup), "onnx", opset=17))


def test_a_pass_leaves_the_graph_it_was_given_as_it_was() -> None:
    before = parse(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu (x) }}")
    before.apply("decompose_gelu", decompose_gelu)
    assert dict(before.operators) == {"Gelu": 1}
    assert run(before)
