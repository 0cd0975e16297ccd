"""Groups of layers: named by kind and shape, coarser if there are many, moved between int8 and float by a choice."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.quantization.groups import GroupChoice, LayerGroup, largest_groups
from edgevit.export.quantization.int8 import PREDICTS, Layer, find_groups, find_layers
from edgevit.export.quantization.sensitivity import LayerChoice
from edgevit.export.quantization.speed_rule import GROUPED, TOO_SMALL, WITHOUT_WEIGHTS
from edgevit.types import Interval
from edgevit.untrusted import InvalidError
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import noise
from tests.helpers.quantization import checked_graph

GRAPH = """(float[batch, 4, 8, 8] x) => (float[batch, 3] y) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w_conv)
  b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (a, w_depthwise)
  c = Conv <kernel_shape = [1, 1]> (b, w_point)
  d = ReduceMean <keepdims = 0> (c, axes)
  y = MatMul (d, w_linear)
}"""


def layer(skip_reason: str = "", *groups: str) -> Layer:
    names = (*groups, *("other",) * (3 - len(groups)))
    return Layer(
        name="net/Conv",
        operator="Conv",
        macs=1,
        activation="x",
        output="y",
        skip_reason=skip_reason,
        groups=(names[0], names[1], names[2]),
    )


def test_a_group_is_named_after_the_kind_and_the_shape_of_its_layers() -> None:
    graph = checked_graph(
        GRAPH,
        w_conv=noise(8, 4, 3, 3),
        w_depthwise=noise(8, 1, 3, 3),
        w_point=noise(16, 8, 1, 1),
        w_linear=noise(16, 3),
        axes=np.asarray([2, 3]),
    )
    assert [each.groups for each in find_layers(graph)] == [
        ("conv3x3-4-8-on-8x8", "conv3x3-on-8x8", "conv3x3"),
        ("depthwise3x3-8-8-on-8x8", "depthwise3x3-on-8x8", "depthwise3x3"),
        ("conv1x1-8-16-on-8x8", "conv1x1-on-8x8", "conv1x1"),
        ("linear-16-3-on-1", "linear-on-1", "linear"),
    ]
    found = find_groups(graph, INT8_SCHEMES["onnx"])
    assert found[0].name == "conv3x3-4-8-on-8x8"
    assert sum(group.fraction for group in found) == pytest.approx(1)
    assert all(group.in_int8 for group in found)


def test_operators_without_weights_are_a_group_of_their_kind() -> None:
    text = """(float[1, 6, 8] x) => (float[1, 6, 8] y) {
        q = MatMul (x, w)
        k = Transpose <perm = [0, 2, 1]> (q)
        a = MatMul (q, k)
        y = MatMul (a, q)
    }"""
    graph = checked_graph(text, w=noise(8, 8))
    layers, products = find_groups(graph, INT8_SCHEMES["ort"])
    assert (layers.name, layers.in_int8) == ("linear-8-8-on-6", True)
    assert (products.name, products.in_int8) == ("product-of-activations", False)
    assert layers.fraction + products.fraction == pytest.approx(1)
    assert [group.name for group in find_groups(graph, INT8_SCHEMES["onnx"])] == ["linear-8-8-on-6"]


def test_an_operator_without_weights_is_int8_if_it_was_measured_to_gain() -> None:
    operators = (layer(WITHOUT_WEIGHTS, "product"), layer(WITHOUT_WEIGHTS, "sum"))
    choices = tuple(GroupChoice(group=each, in_int8=each == "product", moved=True) for each in ("product", "sum"))
    assert [each.groups[0] for each in LayerChoice(groups=choices).moved(operators)] == ["product"]
    assert not LayerChoice().moved(operators)
    assert not LayerChoice(modules=("net",), groups=choices).moved(operators)


def test_more_groups_than_can_be_measured_are_merged_by_size_then_by_kind() -> None:
    layers = [
        ((f"{kind}-{index}", f"{kind}-on-{index // 2}", kind), True, 0.125) for index in range(4) for kind in "ab"
    ]
    assert len(largest_groups(layers, most=8)) == 8
    assert {group.name for group in largest_groups(layers, most=4)} == {"a-on-0", "a-on-1", "b-on-0", "b-on-1"}
    assert largest_groups(layers, most=1) == [LayerGroup(name="a", in_int8=True, fraction=0.5)]


def test_a_choice_moves_the_layers_of_its_group_only() -> None:
    slow = GroupChoice(group="conv", in_int8=False, moved=True, ratio=1.2, interval=Interval(1.1, 1.3))
    choice = LayerChoice(groups=(slow,))
    assert choice.apply(layer("", "conv")).skip_reason == (
        "measured: the engine takes 1.20 times as long (1.10 to 1.30) with conv in int8"
    )
    assert choice.apply(layer("", "linear")).skip_reason == ""


@pytest.mark.parametrize(("reason", "moved"), [(GROUPED, True), (f"{TOO_SMALL}: 0.01%", True), (PREDICTS, False)])
def test_a_layer_in_float_for_its_accuracy_is_never_moved_to_int8(reason: str, *, moved: bool) -> None:
    choice = LayerChoice(groups=(GroupChoice(group="conv", in_int8=True, moved=True),))
    assert (choice.apply(layer(reason, "conv")).skip_reason == "") == moved


def test_a_choice_survives_json() -> None:
    choice = GroupChoice(group="conv", in_int8=False, moved=True, ratio=1.2, interval=Interval(1.1, 1.3))
    assert GroupChoice.parse(choice.to_json(), "groups") == choice
    with pytest.raises(InvalidError, match="ratio"):
        GroupChoice.parse({**choice.to_json(), "ratio": "fast"}, "groups")
