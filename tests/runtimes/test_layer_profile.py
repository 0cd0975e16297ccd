"""Layers grouped by module and by kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgevit.runtimes.layer_profile import TOP_MODULE, UNKNOWN_MODULE, LayerTime, layer_profile, node_module


def layer(name: str, ms: float) -> LayerTime:
    return LayerTime(name=name, kind=name.rpartition("/")[2], module=node_module(name), ms=ms)


RUN = [layer("blocks.0.attn/MatMul", 2.0), layer("blocks.0.mlp/Add", 1.0), layer("blocks.1.mlp/MatMul", 3.0)]


def test_layers_are_summed_by_kind_and_by_module() -> None:
    profile = layer_profile([RUN, RUN, [replace(each, ms=10 * each.ms) for each in RUN]], [7.0, 8.0, 70.0])
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
    assert node_module(name) == module


def test_an_unknown_layer_between_two_of_one_module_counts_to_it() -> None:
    names = ["reorder_1", "a/MatMul", "reorder_2", "a/Add", "reorder_3", "b/Add"]
    modules = [each.module for each in layer_profile([[layer(name, 1.0) for name in names]], [6.0]).layers]
    assert modules == [UNKNOWN_MODULE, "a", "a", "a", UNKNOWN_MODULE, "b"]
