"""Layers grouped by module and by kind."""

from __future__ import annotations

import pytest

from edgevit.runtimes.layer_profile import TOP_MODULE, UNKNOWN_MODULE, layer_profile, module_of_name

RUN = [
    ("blocks.0.attn/MatMul", "MatMul", "blocks.0.attn", 2.0),
    ("blocks.0.mlp/Add", "Add", "blocks.0.mlp", 1.0),
    ("blocks.1.mlp/MatMul", "MatMul", "blocks.1.mlp", 3.0),
]


def test_layers_are_summed_by_kind_and_by_module() -> None:
    profile = layer_profile([RUN, RUN, [(*layer[:3], 10 * layer[3]) for layer in RUN]], [7.0, 8.0, 70.0])
    assert profile.sum_ms == 6 and profile.profiled_ms == 8  # medians: one slow run changes nothing
    kinds = profile.by_kind()
    assert [(group.name, group.layers, group.ms) for group in kinds] == [("MatMul", 2, 5.0), ("Add", 1, 1.0)]
    assert kinds[0].fraction == pytest.approx(5 / 6)
    assert [group.name for group in profile.by_module(2)] == ["blocks.0", "blocks.1"]
    assert [layer.ms for layer in profile.longest(2)] == [3.0, 2.0]


@pytest.mark.parametrize(
    ("name", "module"),
    [("blocks.0.attn/MatMul_3", "blocks.0.attn"), ("/Add", TOP_MODULE), ("reorder_17", UNKNOWN_MODULE)],
)
def test_the_module_is_read_from_the_name(name: str, module: str) -> None:
    assert module_of_name(name) == module
