"""Convolutions of pixels, computed for the tokens that attend to the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import module_of
from edgevit.export.macs import graph_macs
from edgevit.export.passes import specialize
from edgevit.export.passes.project_tokens import project_tokens
from tests.helpers.graphs import HEADER, assert_same, noise, parse

MAP = "float[N, 8, 6, 6] x"
HEADS = np.asarray([0, 2, 6, 36], np.int64)  # of maps with 12 channels
FLAT = np.asarray([0, 12, 36], np.int64)
WEIGHTS = {"w": noise(12, 4, 1, 1, seed=2), "b": noise(12, seed=3)}  # of two groups, to 12 channels
DENSE = {"w": noise(12, 8, 1, 1, seed=2), "b": noise(12, seed=3)}


def after(before: OnnxGraph) -> OnnxGraph:
    return before.apply("project_tokens", project_tokens)


def keys(
    *, conv: str = "Conv <group = 2> (x, w, b)", tokens: int = 3, end: str = "Softmax <axis = -1> (s)"
) -> OnnxGraph:
    text = f"""{HEADER} g ({MAP}, float[N, 2, {tokens}, 6] q) => (float[N, 2, {tokens}, 36] y) {{
        c = {conv}
        k = Reshape (c, shape)
        s = MatMul (q, k)
        y = {end}
    }}"""
    return parse(text, shape=HEADS, **WEIGHTS)


def values(*, conv: str = "Conv <group = 2> (x, w, b)", weights: str = "Softmax <axis = -1> (s)") -> OnnxGraph:
    text = f"""{HEADER} g ({MAP}, float[N, 2, 3, 36] s) => (float[N, 2, 3, 6] y) {{
        c = {conv}
        r = Reshape (c, shape)
        v = Transpose <perm = [0, 1, 3, 2]> (r)
        a = {weights}
        y = MatMul (a, v)
    }}"""
    return parse(text, shape=HEADS, **WEIGHTS)


def values_without_heads(conv: str, weights: dict[str, np.ndarray]) -> OnnxGraph:
    text = f"""{HEADER} g ({MAP}, float[N, 3, 36] s) => (float[N, 3, 12] y) {{
        c = {conv}
        r = Reshape (c, shape)
        v = Transpose <perm = [0, 2, 1]> (r)
        a = Softmax <axis = -1> (s)
        y = MatMul (a, v)
    }}"""
    return parse(text, shape=FLAT, **weights)


@pytest.mark.parametrize(
    ("conv", "end", "additions"),
    [
        ("Conv <group = 2> (x, w, b)", "Softmax <axis = -1> (s)", 0),  # which the bias does not change
        ("Conv <group = 2> (x, w, b)", "Softmax <axis = -2> (s)", 1),
        ("Conv <group = 2> (x, w, b)", "Relu (s)", 1),
        ("Conv <group = 2> (x, w)", "Relu (s)", 0),
    ],
)
def test_keys_are_not_computed_but_the_queries_multiplied(conv: str, end: str, additions: int) -> None:
    before = keys(conv=conv, end=end)
    found = after(before)
    assert found.operators["Conv"] == 0 and found.operators["Add"] == additions
    assert graph_macs(found) < graph_macs(before) / 2
    assert_same(before, found)


def test_keys_without_heads() -> None:
    text = f"""{HEADER} g ({MAP}, float[N, 3, 12] q) => (float[N, 3, 36] y) {{
        c = Conv (x, w, b)
        k = Reshape (c, shape)
        y = MatMul (q, k)
    }}"""
    before = parse(text, shape=FLAT, **DENSE)
    found = after(before)
    assert found.operators["Conv"] == 0
    assert_same(before, found)


@pytest.mark.parametrize("conv", ["Conv <group = 2> (x, w, b)", "Conv <group = 2> (x, w)"])
def test_values_are_computed_of_the_weighted_sums_of_pixels(conv: str) -> None:
    before = values(conv=conv)
    found = after(before)
    assert found.operators["Conv"] == 0
    assert graph_macs(found) < graph_macs(before) / 2
    assert_same(before, found)


@pytest.mark.parametrize(("group", "weights"), [(1, DENSE), (2, WEIGHTS)])
def test_values_without_heads(group: int, weights: dict[str, np.ndarray]) -> None:
    before = values_without_heads(f"Conv <group = {group}> (x, w, b)", weights)
    found = after(before)
    assert found.operators["Conv"] == 0
    assert_same(before, found)


def test_the_sums_of_any_weights_are_equal_without_a_bias() -> None:
    before = values(conv="Conv <group = 2> (x, w)", weights="Relu (s)")
    found = after(before)
    assert found.operators["Conv"] == 0
    assert_same(before, found)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(keys(tokens=9), id="more than half of the work remains"),
        pytest.param(values(weights="Relu (s)"), id="weights of the bias do not sum to 1"),
        pytest.param(values(weights="Softmax <axis = -2> (s)"), id="softmax over the tokens"),
    ],
)
def test_other_products_stay(before: OnnxGraph) -> None:
    assert after(before).operators == before.operators


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (
            "c = Conv <group = 2> (x, w, b) k = Reshape (c, heads) s = MatMul (q, k) y = Concat <axis = 2> (s, k)",
            WEIGHTS,
        ),
        ("c = Conv (x, w, b) k = Reshape (c, heads) y = MatMul (q, k)", DENSE),  # heads share all inputs
        ("n = Relu (x) k = Reshape (n, mixed) y = MatMul (p, k)", {}),  # no convolution
    ],
    ids=["another reader", "heads are no groups", "no convolution"],
)
def test_other_maps_stay(body: str, weights: dict[str, np.ndarray]) -> None:
    inputs = f"{MAP}, float[N, 2, 3, 6] q, float[N, 2, 3, 4] p"
    mixed = np.asarray([0, 2, 4, 36], np.int64)
    before = parse(f"{HEADER} g ({inputs}) => (float[N, 2, Z, 36] y) {{ {body} }}", heads=HEADS, mixed=mixed, **weights)
    assert after(before).operators == before.operators


@pytest.mark.parametrize(
    ("kernel", "attributes", "side"),
    [((48, 4, 3, 3), "group = 2", 4), ((48, 4, 1, 1), "group = 2, strides = [2, 2]", 3)],
    ids=["3x3", "strided"],
)
def test_convolutions_of_other_kernels_stay(kernel: tuple[int, ...], attributes: str, side: int) -> None:
    text = f"""{HEADER} g ({MAP}, float[N, 2, 1, 24] q) => (float[N, 2, 1, {side * side}] y) {{
        c = Conv <{attributes}> (x, w)
        k = Reshape (c, shape)
        y = MatMul (q, k)
    }}"""
    before = parse(text, w=noise(*kernel), shape=np.asarray([0, 2, 24, side * side], np.int64))
    assert after(before).operators == before.operators


@pytest.mark.parametrize(
    ("shape", "rows"), [([-1, 2, 6, 72], "float[1, 2, 3, 6]"), ([2, 2, 9, 24], "float[2, 2, 3, 9]")]
)
def test_maps_of_several_images_or_parts_of_one_stay(shape: list[int], rows: str) -> None:
    text = f"""{HEADER} g (float[2, 8, 6, 6] x, {rows} q) => (float[B, 2, 3, P] y) {{
        c = Conv <group = 2> (x, w, b)
        k = Reshape (c, shape)
        y = MatMul (q, k)
    }}"""
    before = parse(text, shape=np.asarray(shape, np.int64), **WEIGHTS)
    assert after(before).operators == before.operators


@pytest.mark.parametrize(("fmt", "convolutions"), [("ort", 0), ("openvino", 0), ("trt", 1)])
def test_the_formats_of_processors_use_it(fmt: str, convolutions: int) -> None:
    assert specialize(keys(), fmt).operators["Conv"] == convolutions


def test_the_product_with_the_weights_keeps_the_name_of_the_convolution() -> None:
    before = keys()
    names = {"Conv": "tokenizer.key/Conv", "MatMul": "tokenizer/MatMul"}
    for node in before.model.graph:
        node.name = names.get(node.op_type, node.name)
    modules = [module_of(node) for node in after(before).model.graph if node.op_type == "MatMul"]
    assert modules == ["tokenizer.key", "tokenizer"]
