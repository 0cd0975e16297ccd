"""Known sizes of tensors with a dynamic batch."""

from __future__ import annotations

import pytest

from edgevit.export.passes.fold_static_dims import fold_static_dims
from tests.helpers.graphs import HEADER, assert_same, parse

SLICE = "Slice (shape, a, b)"


@pytest.mark.parametrize(
    ("taken", "operators"),
    [
        ("a = Constant <value_ints = [2]> ()  n = Gather (shape, a)", {"Reshape": 1}),
        (
            "a = Constant <value_ints = [1]> ()  b = Constant <value_ints = [2]> ()  n = Slice (shape, a, b)",
            {"Reshape": 1},
        ),
        (
            "a = Constant <value_ints = [0]> ()  n = Gather (shape, a)",  # the batch
            {"Shape": 1, "Gather": 1, "Concat": 1, "Constant": 2, "Reshape": 1},
        ),
    ],
)
def test_only_known_sizes_are_folded(taken: str, operators: dict[str, int]) -> None:
    before = parse(
        f"""{HEADER} g (float[batch, 4, 6] x) => (float[A, B] y) {{
            shape = Shape (x)
            {taken}
            rest = Constant <value_ints = [-1]> ()
            target = Concat <axis = 0> (rest, n)
            y = Reshape (x, target)
        }}"""
    )
    after = before.apply("fold_static_dims", fold_static_dims)
    assert dict(after.operators) == operators
    assert_same(before, after, exact=True)


def test_the_shape_of_a_reshape_can_be_inferred_afterwards() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4, 6] x) => (float[A, B, C] y) {{
            shape = Shape (x)
            zero = Constant <value_ints = [0]> ()
            two = Constant <value_ints = [2]> ()
            three = Constant <value_ints = [3]> ()
            batch = Slice (shape, zero, two)
            last = Slice (shape, two, three)
            rest = Concat <axis = 0> (last, batch)
            y = Reshape (x, rest)
        }}"""
    ).apply("fold_static_dims", fold_static_dims)
    (output,) = graph.model.graph.outputs
    assert output.shape is not None
    assert [dim for dim in output.shape if isinstance(dim, int)] == [6, 4]
