"""Folding of channel shuffles into the following layers."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.fuse_channel_shuffle import fuse_channel_shuffle
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, noise, parse

# Tokens (batch, 5, 6) with shuffled channels, outputs, and the nodes that read the tokens.
SHUFFLE = f"""{HEADER} g (float[%s, 5, 6] x) => (%s) {{
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
        s=noise(6, offset=1), t=noise(6, seed=2), w=weight, v=noise(4, seed=4),
    ).apply("cleanup", cleanup)  # fmt: skip


@pytest.mark.parametrize("batch", ["3", "N"])
@pytest.mark.parametrize(
    ("readers", "shape", "weight"),
    [
        ("y = MatMul (c, w)", "5, 4", noise(6, 4)),
        ("y = MatMul (c, w)", "5, 4", noise(1, 6, 4)),
        ("d = LayerNormalization (c, s, t) y = MatMul (d, w)", "5, 4", noise(6, 4)),
        ("d = LayerNormalization <axis = 2> (c, s) y = MatMul (d, w)", "5, 4", noise(6, 4)),
        ("d = Gather <axis = 1> (c, zero) e = LayerNormalization (d, s, t) y = Gemm (e, w)", "4", noise(6, 4)),
        (
            "d = LayerNormalization (c, s, t) e = ReduceMean <keepdims = 0> (d, one) y = Gemm <transB = 1> (e, w, v)",
            "4",
            noise(4, 6),
        ),
        (
            "d = Slice (c, first, two, one) e = LayerNormalization (d, s, t) y = MatMul (e, w)",
            "2, 4",
            noise(6, 4),
        ),
    ],
)
def test_a_shuffle_is_folded_into_norm_and_layer(readers: str, shape: str, weight: Array, batch: str) -> None:
    before = shuffled(readers, f"float[{batch}, {shape}] y", weight, batch=batch)
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert before.operators - after.operators == {"Reshape": 2, "Transpose": 1}
    assert_same(before, after)


@pytest.mark.parametrize(
    ("readers", "shape"),
    [
        pytest.param("y = LayerNormalization (c, s, t)", "5, 6", id="no following layer"),
        pytest.param("d = Softmax (c) y = MatMul (d, w)", "5, 4", id="an unsupported operator"),
        pytest.param("d = LayerNormalization <axis = 1> (c, m) y = MatMul (d, w)", "5, 4", id="a scale per token"),
        pytest.param("d = LayerNormalization (c, o) y = MatMul (d, w)", "5, 4", id="one scale for all channels"),
        pytest.param("d = Gather <axis = 2> (c, reversed) y = MatMul (d, w)", "5, 4", id="gathered channels"),
        pytest.param("d = Slice (c, first, six, two) y = MatMul (d, w)", "5, 4", id="sliced channels"),
        pytest.param("d = ReduceMean (c, two) y = MatMul (d, n)", "5, 4", id="averaged channels"),
        pytest.param("y = MatMul (f, c)", "4, 6", id="right operand"),
        pytest.param(
            "d = Gather <axis = 1> (c, zero) e = Gather <axis = 1> (x, zero) y = Gemm (e, h, d)", "6", id="bias"
        ),
        pytest.param("d = Transpose <perm = [0, 2, 1]> (x) y = MatMul (c, d)", "5, 5", id="computed weight"),
    ],
)
def test_a_shuffle_before_other_operators_stays(readers: str, shape: str) -> None:
    before = parse(
        SHUFFLE % ("N", f"float[N, {shape}] y", readers),
        s=noise(6, offset=1), t=noise(6, seed=2), w=noise(6, 4, seed=3), m=noise(5, 6), o=noise(1),
        n=noise(1, 4), f=noise(4, 5), h=noise(6, 6), reversed=np.arange(6)[::-1], six=np.asarray([6]),
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
def test_a_shuffle_with_other_consumers_stays(readers: str, outputs: str) -> None:
    before = shuffled(readers, outputs, noise(6, 4))
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("perm = [0, 2, 1]", "perm = [1, 2, 0]"),  # permutes the tokens too
        ("[-1, 2, 3]", "[-1, 5, 3]"),  # (2 N, 5, 3): mixes tokens and channels
        ("[-1, 5, 6]", "[-1, 10, 3]"),  # another number of channels
    ],
)
def test_other_permutations_stay(old: str, new: str) -> None:
    text = SHUFFLE % ("N", "float[N, A, 4] y", "y = MatMul (c, w)")
    before = parse(text.replace(old, new), w=noise(3 if "10, 3" in new else 6, 4))
    after = before.apply("fuse_channel_shuffle", fuse_channel_shuffle)
    assert after.operators["Transpose"] == 1
    assert_same(before, after, exact=True)
