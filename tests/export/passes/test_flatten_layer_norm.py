"""Norms of the pixels of maps as norms of tokens."""

from __future__ import annotations

import pytest

from edgevit.export.passes.flatten_layer_norm import flatten_layer_norm
from tests.helpers.graphs import HEADER, assert_same, noise, parse

WEIGHTS = {"scale": noise(8, offset=1), "bias": noise(8, seed=2), "map": noise(5, 8, seed=3)}


def graph(norm: str, shape: str) -> str:
    return f"{HEADER} g (float[N, {shape}] x) => (y) {{ n = LayerNormalization {norm} y = Relu (n) }}"


@pytest.mark.parametrize(("shape", "tokens"), [("4, 5, 8", 20), ("2, 3, 5, 8", 30)])
@pytest.mark.parametrize("norm", ["<epsilon = 0.01> (x, scale, bias)", "<axis = -1> (x, scale)"])
def test_pixels_are_normalized_as_tokens(norm: str, shape: str, tokens: int) -> None:
    before = parse(graph(norm, shape), **WEIGHTS)
    after = before.apply("flatten_layer_norm", flatten_layer_norm)
    assert after.operators == {"Reshape": 2, "LayerNormalization": 1, "Relu": 1}
    (node,) = (node for node in after.model.graph if node.op_type == "LayerNormalization")
    assert list(node.outputs[0].shape or ())[1:] == [tokens, 8]
    assert_same(before, after)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        ("(x, scale, bias)", "5, 8"),  # tokens
        ("(x, scale, bias)", "H, 5, 8"),  # an unknown number of rows
        ("<axis = 2> (x, map)", "4, 5, 8"),  # over pixels too
    ],
)
def test_other_norms_stay(norm: str, shape: str) -> None:
    before = parse(graph(norm, shape), **WEIGHTS)
    after = before.apply("flatten_layer_norm", flatten_layer_norm)
    assert after.operators == {"LayerNormalization": 1, "Relu": 1}
