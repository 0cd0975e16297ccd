"""Tensors of a graph beside PyTorch's, whole or one row of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.export.tensor_parts import (
    ChannelScale,
    JoinedPart,
    KeptRow,
    MeanRow,
    mark_channel_order,
    mark_channel_scale,
    mark_joined_part,
    mark_mean_row,
)
from edgevit.pipeline.explain.graph_tensors import GraphTensors
from tests.helpers.graphs import HEADER, parse

WHOLE = torch.arange(30.0).reshape(1, 5, 6)
ROW = np.full((1, 1, 6), -1.0, np.float32)


def tensors(row: KeptRow) -> GraphTensors:
    return GraphTensors({"row": ROW, "whole": WHOLE.numpy() + 9}, {"row": row}, {}, {}, {})


@pytest.mark.parametrize(("index", "position"), [(0, 0), (3, 3), (-1, 4)])
def test_a_row_stands_among_the_other_rows_of_pytorch(index: int, position: int) -> None:
    found = tensors(KeptRow(1, index)).like("row", WHOLE)
    assert torch.equal(found[:, position], torch.full((1, 6), -1.0))
    others = [row for row in range(5) if row != position]
    assert torch.equal(found[:, others], WHOLE[:, others])
    assert torch.equal(tensors(KeptRow(1, index)).part("row", WHOLE), WHOLE[:, [position]])


def test_a_whole_tensor_is_preferred_to_a_row_that_is_closer() -> None:
    assert tensors(KeptRow(1, 0)).closest(WHOLE, ["row", "whole"]) == "whole"
    assert tensors(KeptRow(1, 0)).closest(WHOLE, ["row"]) == "row"


@pytest.mark.parametrize("row", [KeptRow(1, 5), KeptRow(2, 0), KeptRow(0, 0)])
def test_a_row_of_another_shape_does_not_fit(row: KeptRow) -> None:
    assert not tensors(row).fits("row", WHOLE)
    assert tensors(KeptRow(1, 4)).fits("row", WHOLE)


def test_integers_and_other_shapes_do_not_fit() -> None:
    found = tensors(KeptRow(1, 0))
    assert not found.fits("whole", WHOLE.to(torch.int64))
    assert not found.fits("whole", WHOLE.reshape(1, 6, 5))
    assert found.fits("whole", WHOLE.reshape(5, 1, 6))


def test_parts_are_joined_and_split() -> None:
    graph = parse(
        f"{HEADER} g (float[5, 2] a, float[5, 4] b) => (float[5, 2] c, float[5, 4] d) {{c = Relu (a) d = Relu (b)}}"
    )
    for number, value in enumerate(graph.model.graph.outputs):
        mark_joined_part(value, JoinedPart("whole", number, 2))
    found = GraphTensors.of(graph, {"c": WHOLE.numpy()[0, :, :2], "d": WHOLE.numpy()[0, :, 2:]})
    assert found.fits("whole", WHOLE) and torch.equal(found.like("whole", WHOLE), WHOLE)
    assert found.with_joined(["d", "c"]) == ("d", "c", "whole") and found.with_joined(["c"]) == ("c",)
    assert (found.computed("whole"), found.computed("c")) == (("c", "d"), ("c",))
    assert {name: array.shape for name, array in found.split("whole", WHOLE).items()} == {"c": (5, 2), "d": (5, 4)}
    assert "whole" not in GraphTensors.of(graph, {"c": ROW}).values


def test_channels_in_another_order_are_compared_in_pytorchs() -> None:
    order = np.asarray([3, 0, 5, 1, 4, 2])
    graph = parse(f"{HEADER} g (float[1, 5, 6] a) => (float[1, 5, 6] c) {{c = Relu (a)}}")
    mark_channel_order(graph.model.graph.outputs[0], order)
    value = np.empty((1, 5, 6), np.float32)
    value[..., order] = WHOLE.numpy()
    found = GraphTensors.of(graph, {"c": value})
    assert torch.equal(found.like("c", WHOLE), WHOLE)
    assert np.array_equal(found.split("c", WHOLE)["c"], value)


def test_scaled_channels_are_compared_in_pytorchs_scale() -> None:
    graph = parse(f"{HEADER} g (float[1, 5, 6] a) => (float[1, 5, 6] c) {{c = Relu (a)}}")
    factors = np.asarray([1, 2, 4, 8, 0.5, -1], np.float32)
    mark_channel_scale(graph.model.graph.outputs[0], ChannelScale(-1, factors))
    found = GraphTensors.of(graph, {"c": WHOLE.numpy() * factors})
    assert torch.equal(found.like("c", WHOLE), WHOLE)
    assert np.array_equal(found.split("c", WHOLE)["c"], WHOLE.numpy() * factors)


def test_a_mean_of_rows_moves_those_of_pytorch() -> None:
    graph = parse(f"{HEADER} g (float[1, 1, 6] a) => (float[1, 1, 6] c) {{c = Relu (a)}}")
    mark_mean_row(graph.model.graph.outputs[0], MeanRow(((1, 1, 5),)))
    rows = WHOLE[:, 1:]
    found = GraphTensors.of(graph, {"c": rows.mean(1, keepdim=True).numpy() + 3})
    assert found.fits("c", WHOLE) and not found.fits("c", WHOLE[:, 1:])  # fewer rows than the mean is of
    assert torch.equal(found.part("c", WHOLE), rows.mean(1, keepdim=True))
    assert torch.equal(found.like("c", WHOLE), torch.cat([WHOLE[:, :1], rows + 3], dim=1))
