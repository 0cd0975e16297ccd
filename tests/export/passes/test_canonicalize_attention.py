"""Attention in the form that TensorRT fuses."""

from __future__ import annotations

import pytest

from edgevit.export.passes.canonicalize_attention import canonicalize_attention
from tests.helpers.graphs import HEADER, assert_same, noise, parse

ATTENTION = f"""{HEADER} g (float[N, 2, %s] a, float[N, 2, %s] b, float[N, 2, %s] v) => (float[N, 2, M, C] y%s) {{
    s = MatMul (a, b)
    w = Softmax <axis = %d> (s)
    %s
}}"""


@pytest.mark.parametrize("axis", [-2, 2])
def test_transposed_attention_is_transposed_back(axis: int) -> None:
    """Keys (5, 20) times pixels (20, 9), normalized over the keys; values (16, 5) times the result."""
    before = parse(ATTENTION % ("5, 20", "20, 9", "16, 5", "", axis, "y = MatMul (v, w)"))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == {"MatMul": 2, "Softmax": 1, "Transpose": 4}
    (softmax,) = (node for node in after.model.graph if node.op_type == "Softmax")
    assert softmax.attributes.get_int("axis", 0) == -1
    assert list(softmax.outputs[0].shape or ())[2:] == [9, 5]
    assert_same(before, after)


@pytest.mark.parametrize("axis", [-1, 3])
def test_q_and_k_are_padded_to_the_width_of_v(axis: int) -> None:
    before = parse(ATTENTION % ("9, 12", "12, 5", "5, 16", "", axis, "y = MatMul (w, v)"))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == {"MatMul": 2, "Softmax": 1, "Pad": 2}
    (scores, _) = (node for node in after.model.graph if node.op_type == "MatMul")
    assert [list(value.shape or ())[2:] for value in scores.inputs if value is not None] == [[9, 16], [16, 5]]
    assert_same(before, after)


@pytest.mark.parametrize(
    ("shapes", "axis", "product", "width"),
    [
        pytest.param(("9, 8", "8, 5", "5, 8"), -1, "y = MatMul (w, v)", 16, id="8 channels"),
        pytest.param(("9, 12", "12, 5", "5, 12"), -1, "y = MatMul (w, v)", 16, id="12 channels"),
        pytest.param(("9, 12", "12, 5", "5, 15"), -1, "y = MatMul (w, v)", 16, id="12 and 15 channels"),
        pytest.param(("9, 20", "20, 5", "5, 20"), -1, "y = MatMul (w, v)", 24, id="20 channels"),
        pytest.param(("9, 16", "16, 5", "5, 25"), -1, "y = MatMul (w, v)", 32, id="twice as wide as the keys"),
        pytest.param(("9, 16", "16, 5", "5, 6"), -1, "y = MatMul (w, v)", 16, id="narrow values alone"),
        pytest.param(("5, 8", "8, 9", "8, 5"), -2, "y = MatMul (v, w)", 16, id="transposed"),
    ],
)
def test_heads_are_padded_to_a_multiple_of_8_channels_and_cut(
    shapes: tuple[str, ...], axis: int, product: str, width: int
) -> None:
    before = parse(ATTENTION % (*shapes, "", axis, product))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    scores, values = (node for node in after.model.graph if node.op_type == "MatMul")
    padded = (scores.inputs[0], values.inputs[1])
    assert [value.shape[-1] for value in padded if value and value.shape] == [width, width]
    assert after.operators["Slice"] == 1
    assert_same(before, after)


def test_constant_queries_are_padded_in_the_file() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 2, 8, 9] pixels) => (float[N, 2, 3, 8] y) {{
            s = MatMul (q, pixels)
            w = Softmax <axis = -1> (s)
            v = Transpose <perm = [0, 1, 3, 2]> (pixels)
            y = MatMul (w, v)
        }}""",
        q=noise(1, 2, 3, 8),
    )
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == {"MatMul": 2, "Softmax": 1, "Pad": 1, "Transpose": 1, "Slice": 1}
    assert_same(before, after)


def test_values_that_are_the_transposed_keys_are_padded_once() -> None:
    before = parse(f"""{HEADER} g (float[N, 2, 3, 8] q, float[N, 2, 8, 9] pixels) => (float[N, 2, 3, 8] y) {{
        s = MatMul (q, pixels)
        w = Softmax <axis = -1> (s)
        v = Transpose <perm = [0, 1, 3, 2]> (pixels)
        y = MatMul (w, v)
    }}""")
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == {"MatMul": 2, "Softmax": 1, "Pad": 2, "Transpose": 1, "Slice": 1}
    assert_same(before, after)


@pytest.mark.parametrize(
    ("shapes", "outputs", "axis", "readers"),
    [
        pytest.param(("9, 16", "16, 5", "5, 16"), "", -1, "y = MatMul (w, v)", id="already canonical"),
        pytest.param(("9, 3", "3, 5", "5, 8"), "", -1, "y = MatMul (w, v)", id="mostly zeros"),
        pytest.param(("9, 8", "8, 5", "5, 3"), "", -1, "y = MatMul (w, v)", id="values that would be mostly zeros"),
        pytest.param(("9, 20", "20, 5", "5, 8"), "", -1, "y = MatMul (w, v)", id="narrow values, wide keys"),
        pytest.param(("9, 8", "8, 5", "5, 17"), "", -1, "y = MatMul (w, v)", id="too much padding"),
        pytest.param(("9, 20", "20, 5", "5, 16"), "", -1, "y = MatMul (w, v)", id="wider than v"),
        pytest.param(("5, 4", "4, 9", "4, 5"), "", -2, "y = MatMul (v, w)", id="narrow heads"),
        pytest.param(("5, 16", "16, 9", "16, 5"), "", -1, "y = MatMul (v, w)", id="not over the keys"),
        pytest.param(
            ("12, 16", "16, 12", "12, 16"), "", -2, "y = MatMul (w, v)", id="not over the keys, not transposed"
        ),
        pytest.param(
            ("9, 8", "8, 12", "5, 9"), "", -1, "y = MatMul (v, w)", id="transposed without transposed softmax"
        ),
        pytest.param(("9, 8", "8, 5", "5, 12"), "", -2, "y = MatMul (w, v)", id="softmax over the queries"),
        pytest.param(
            ("5, 16", "16, 9", "16, 5"), ", float[N, 2, 5, 9] w", -2, "y = MatMul (v, w)", id="weights are an output"
        ),
        pytest.param(
            ("5, 16", "16, 9", "16, 5"), ", float[N, 2, 5, 9] s", -2, "y = MatMul (v, w)", id="scores are an output"
        ),
    ],
)
def test_other_attention_stays(shapes: tuple[str, ...], outputs: str, axis: int, readers: str) -> None:
    before = parse(ATTENTION % (*shapes, outputs, axis, readers))
    after = before.apply("canonicalize_attention", canonicalize_attention)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)
