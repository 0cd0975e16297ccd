"""Elements that operators only move, followed by their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.moves import follow
from edgevit.types import Array
from tests.helpers.graphs import HEADER, noise, parse, run

WEIGHTS = {
    "row": noise(1, 6),
    "shape": np.asarray([2, 2, 3]),
    "axes": np.asarray([0]),
    "one": np.asarray([1]),
    "order": np.asarray([1, 0]),
    "two": np.asarray([2, 2]),
}


def followed(body: str, output: str = "float[2, 2, 3] y") -> tuple[OnnxGraph, dict[str, Array]]:
    graph = parse(f"{HEADER} g (float[2, 6] x) => ({output}) {{ {body} }}", **WEIGHTS)
    moved = follow(graph.model.graph.inputs[0], np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32))
    return graph, {str(value.name): array for value, array in moved.items()}


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape (x, shape)",
        "a, b = Split <axis = 1, num_outputs = 2> (x) c = Concat <axis = 1> (b, a) y = Reshape (c, shape)",
        "a = Gather <axis = 0> (x, order) b = Concat <axis = 0> (x, a) c, d = Split (b, two) y = Reshape (d, shape)",
        "a = Transpose (x) b = Transpose (a) y = Reshape (b, shape)",
        "a = Slice (x, axes, one, , one) b = Concat <axis = 0> (a, a) y = Reshape (b, shape)",  # no axes
    ],
)
def test_values_are_those_of_the_runtime(body: str) -> None:
    graph, moved = followed(body)
    assert np.array_equal(moved["y"], run(graph)["y"])


@pytest.mark.parametrize(
    "body",
    [
        "a = Concat <axis = 0> (x, row) y = Gelu (a)",  # other elements
        "g = Gelu (x) a = Concat <axis = 0> (x, g) y = Gelu (a)",
        "a = Squeeze (x) y = Gelu (a)",  # of axes that are 1 in this image
        "s = Shape (x) a = Reshape (x, s) y = Gelu (a)",  # not a constant
    ],
)
def test_values_with_other_elements_are_not_followed(body: str) -> None:
    _, moved = followed(body, "y")
    assert list(moved) == ["x"]
