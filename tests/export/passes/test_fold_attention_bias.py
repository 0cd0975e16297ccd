"""Folding of attention biases."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.fold_attention_bias import fold_attention_bias
from tests.helpers.graphs import HEADER, assert_same, noise, parse

HEADS = f"""{HEADER} g (float[%s, 5, 12] x) => (float[%s, 5, 12] y%s) <float[%s, 5, 36] b, float[%s, 3, 5, 5] f> {{
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
        w=noise(12, 36), bias=noise(36, seed=2), u=noise(12, 12, seed=3), p=noise(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), tokens=np.asarray([0, 5, 12]),
        t=noise(3, 5, 5, seed=5), s=noise(3, 1, 1, seed=6), r=noise(1, 5, seed=7),
    ).apply("cleanup", cleanup)  # fmt: skip


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("scores", ["Identity (d)", "Add (d, t)", "Add (t, d)", "Div (d, c)"])
def test_only_the_bias_of_the_query_remains(scores: str, batch: str) -> None:
    before = heads(scores=scores, batch=batch)
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert after.operators == before.operators
    order = [node.op_type for node in after.model.graph]
    assert order[:2] == ["MatMul", "Split"]
    assert order[order.index("Add") - 1] == "Transpose"
    assert_same(before, after)


def test_biases_of_window_attention_are_folded() -> None:
    """Two windows per image, with their heads merged into the batch, as in Swin."""
    before = parse(
        f"""{HEADER} g (float[6, 5, 12] x) => (float[6, 5, 12] y) {{
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
        w=noise(12, 36), bias=noise(36, seed=2), u=noise(12, 12, seed=3), p=noise(12, seed=4),
        heads=np.asarray([6, 5, 3, 4]), all=np.asarray([3, 6, 5, 4]), windows=np.asarray([6, 3, 5, 4]),
        tokens=np.asarray([6, 5, 12]),
    )  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    query = next(node for node in after.model.graph if node.op_type == "Add")
    assert np.asarray(constant(query.inputs[1])).shape == (1, 3, 1, 4)
    assert_same(before, after)


@pytest.mark.parametrize("is_folded", [True, False])
def test_biases_of_three_separate_layers_are_folded(is_folded: bool) -> None:
    """Three linear layers instead of one; they stay if a biased value has other consumers."""
    text = f"""{HEADER} g (float[N, 5, 4] x) => (float[N, 5, 4] y, float[N, 5, 4] z) {{
        a = MatMul (x, w)  q = Add (a, s)  q1 = Reshape (q, heads)  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
        b = MatMul (x, v)  k = Add (b, t)  k1 = Reshape (k, heads)  k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
        c = MatMul (x, u)  l = Add (c, r)  l1 = Reshape (l, heads)  l2 = Transpose <perm = [0, 2, 1, 3]> (l1)
        d = MatMul (q2, k2)  e = Softmax (d)  f = MatMul (e, l2)  g = Transpose <perm = [0, 2, 1, 3]> (f)
        h = Reshape (g, tokens)  i = MatMul (h, w)  y = Add (i, s)
        z = Relu ({"x" if is_folded else "k"})
    }}"""
    vectors = {name: noise(4, seed=seed) for seed, name in enumerate("str")}
    matrices = {name: noise(4, 4, seed=seed) for seed, name in enumerate("wvu", 5)}
    before = parse(text, **vectors, **matrices, heads=np.asarray([0, 5, 2, 2]), tokens=np.asarray([0, 5, 4]))
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert before.operators - after.operators == ({"Add": 2} if is_folded else {})
    assert_same(before, after)


SHARED = f"""{HEADER} g (float[%s, 5, 12] x) => (float[%s, 5, 12] y) {{
    a = MatMul (x, w)  q = Add (a, s)  q1 = Reshape (q, heads)  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    b = MatMul (x, v)  k = Add (b, t)  k1 = Reshape (k, one)  k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    c = MatMul (x, u)  l = Add (c, r)  l1 = Reshape (l, one)  l2 = Transpose <perm = [0, 2, 1, 3]> (l1)
    d = MatMul (q2, k2)  e = Softmax (d)  f = MatMul (e, l2)  g = Transpose <perm = [0, 2, 1, 3]> (f)
    h = Reshape (g, tokens)  i = MatMul (h, o)  y = Add (i, p)
}}"""


@pytest.mark.parametrize("batch", ["N", "1", "3"])
@pytest.mark.parametrize("tokens", [[0, 0, -1], [-1, 5, 12]])
def test_biases_of_one_key_and_value_for_all_heads_are_folded(tokens: list[int], batch: str) -> None:
    """Multi-query attention: the matmuls broadcast k and v to the heads of q."""
    before = parse(
        SHARED % (batch, batch),
        w=noise(12, 12), s=noise(12, seed=2), v=noise(12, 4, seed=3), t=noise(4, seed=4), u=noise(12, 4, seed=5),
        r=noise(4, seed=6), o=noise(12, 12, seed=7), p=noise(12, seed=8), heads=np.asarray([0, 5, 3, 4]),
        one=np.asarray([0, 5, 1, 4]), tokens=np.asarray(tokens),
    )  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert before.operators - after.operators == {"Add": 2}
    assert_same(before, after)


def test_biases_of_a_layer_that_they_widen_stay() -> None:
    """A column and a wider bias are no linear layer: without the bias the sum would be narrower."""
    before = parse(
        SHARED % ("N", "N"),
        w=noise(12, 4), s=noise(4, seed=2), v=noise(12, 1, seed=3), t=noise(4, seed=4), u=noise(12, 4, seed=5),
        r=noise(4, seed=6), o=noise(4, 12, seed=7), p=noise(12, seed=8), heads=np.asarray([0, 5, 1, 4]),
        one=np.asarray([0, 5, 1, 4]), tokens=np.asarray([0, 5, 4]),
    )  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(("max_single_head", "is_folded"), [(12, True), (11, False)])
def test_biases_of_a_single_wide_head_stay(
    max_single_head: int, is_folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["edgevit.export.passes.fold_attention_bias"], "_MAX_SINGLE_HEAD", max_single_head)
    before = parse(
        HEADS.replace("3, 5, 5] f", "1, 5, 5] f") % ("N", "N", "", "N", "N", "Identity (d)", -1, ""),
        w=noise(12, 36), bias=noise(36, seed=2), u=noise(12, 12, seed=3), p=noise(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 1, 12]), tokens=np.asarray([0, 5, 12]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert ([node.op_type for node in after.model.graph] != [node.op_type for node in before.model.graph]) == is_folded


def test_biases_of_one_head_without_a_split_stay() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 5, 4] x) => (float[N, 5, 4] y) {{
            a = MatMul (x, w)  q = Add (a, s)  b = MatMul (x, w)  k = Add (b, s)  k1 = Transpose <perm = [0, 2, 1]> (k)
            c = MatMul (x, w)  v = Add (c, s)  d = MatMul (q, k1)  e = Softmax (d)  f = MatMul (e, v)
            g = MatMul (f, w)  y = Add (g, s)
        }}""",
        w=noise(4, 4),
        s=noise(4),
    )
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(
    "changed",
    [
        {"axis": 2},  # over the queries
        {"axis": 1},
        {"scores": "Mul (d, s)"},  # one scale per head: only a scalar is supported
        {"scores": "Relu (d)"},
        {"more": "z = Relu (b)", "outputs": ", float[N, 5, 36] z"},  # other consumers
        {"more": "z = Relu (k)", "outputs": ", float[N, 5, 12] z"},
        {"more": "z = Relu (k2)", "outputs": ", float[N, 3, 4, 5] z"},
        {"more": "z = Relu (g)", "outputs": ", float[N, 3, 5, 4] z"},
        {"more": "z = Relu (f)", "outputs": ", float[N, 3, 5, 5] z"},
        {"more": "z = Relu (d)", "outputs": ", float[N, 3, 5, 5] z"},
        {"more": "z = Relu (j)", "outputs": ", float[N, 5, 12] z"},
    ],
)
def test_biases_of_other_graphs_stay(changed: dict[str, Any]) -> None:
    before = heads(**changed)
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert [node.op_type for node in after.model.graph] == [node.op_type for node in before.model.graph]
    assert_same(before, after, exact=True)


def test_biases_of_a_split_into_four_stay() -> None:
    four = HEADS.replace("q, k, v =", "q, k, v, o =").replace("num_outputs = 3", "num_outputs = 4")
    before = parse(
        four.replace("36]", "48]") % ("N", "N", ", float[N, 5, 12] z", "N", "N", "Identity (d)", -1, "z = Relu (o)"),
        w=noise(12, 48), bias=noise(48, seed=2), u=noise(12, 12, seed=3), p=noise(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), tokens=np.asarray([0, 5, 12]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert_same(before, after, exact=True)


@pytest.mark.parametrize(("old", "new"), [
    ("v2 = Transpose <perm = [0, 2, 1, 3]> (v1)", "v2 = Reshape (v, mixed)"),  # heads mix tokens
    ("k2 = Transpose <perm = [0, 2, 3, 1]> (k1)", "k2 = Reshape (k, crossed)"),
    ("h = Transpose <perm = [0, 2, 1, 3]> (g)  i = Reshape (h, tokens)", "i = Reshape (g, tokens)"),
])  # fmt: skip
def test_reshapes_that_mix_tokens_and_channels_stay(old: str, new: str) -> None:
    text = HEADS.replace("\n    i = ", "  i = ")
    assert old in text
    before = parse(
        text.replace(old, new) % ("N", "N", "", "N", "N", "Identity (d)", -1, ""),
        w=noise(12, 36), bias=noise(36, seed=2), u=noise(12, 12, seed=3), p=noise(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), tokens=np.asarray([0, 5, 12]),
        mixed=np.asarray([0, 3, 5, 4]), crossed=np.asarray([0, 3, 4, 5]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert_same(before, after)


def test_biases_of_a_query_that_joins_three_images_stay() -> None:
    """Two images, which stand for a dynamic batch, do not fit."""
    text = HEADS.replace("5, 12] y", "15, 12] y").replace("3, 5, 5] f", "3, 15, 5] f")
    before = parse(
        text.replace("Reshape (q, heads)", "Reshape (q, joined)") % ("N", "N", "", "N", "N", "Identity (d)", -1, ""),
        w=noise(12, 36), bias=noise(36, seed=2), u=noise(12, 12, seed=3), p=noise(12, seed=4),
        c=np.asarray(0.5, np.float32), heads=np.asarray([0, 5, 3, 4]), joined=np.asarray([-1, 15, 3, 4]),
        tokens=np.asarray([0, 15, 12]),
    ).apply("cleanup", cleanup)  # fmt: skip
    after = before.apply("fold_attention_bias", fold_attention_bias)
    assert [node.op_type for node in after.model.graph] == [node.op_type for node in before.model.graph]
    assert_same(before, after, exact=True)
