"""Groups with an odd number of inputs and several outputs become half as many, with the same result."""

from __future__ import annotations

import pytest

from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_work
from edgevit.export.passes.pair_groups import pair_groups
from edgevit.types import Precision
from tests.helpers.graphs import HEADER, assert_same, noise, parse


def convolution(groups: int, inputs: int, outputs: int, *, batch: str = "N") -> OnnxGraph:
    """A 3x3 convolution with stride 2 and a bias; `inputs` and `outputs` are those of a group."""
    return parse(
        f"{HEADER} g (float[{batch}, {groups * inputs}, 6, 6] x) => (float[{batch}, {groups * outputs}, 3, 3] y) {{ "
        f"y = Conv <group = {groups}, kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b) }}",
        w=noise(groups * outputs, inputs, 3, 3, seed=2),
        b=noise(groups * outputs, seed=3),
    )


def paired(graph: OnnxGraph) -> OnnxGraph:
    return graph.apply("pair_groups", pair_groups)


def group_attribute(graph: OnnxGraph) -> int | None:
    (node,) = graph.model.graph
    return node.attributes.get_int("group", 1)


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(8, 1, 2), (6, 1, 6), (4, 3, 9), (2, 1, 4)])
def test_odd_groups_are_paired(groups: int, inputs: int, outputs: int) -> None:
    before = convolution(groups, inputs, outputs)
    after = paired(before)
    assert group_attribute(after) == groups // 2
    assert_same(before, after)


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs"),
    [
        pytest.param(8, 1, 1, id="depthwise"),
        pytest.param(4, 2, 6, id="even inputs"),
        pytest.param(3, 1, 4, id="odd number of groups"),
        pytest.param(1, 3, 4, id="no groups"),
    ],
)
def test_other_convolutions_stay(groups: int, inputs: int, outputs: int) -> None:
    before = convolution(groups, inputs, outputs)
    after = paired(before)
    assert group_attribute(after) == groups
    assert_same(before, after, exact=True)


def test_kernels_that_are_computed_stay() -> None:
    before = parse(
        f"{HEADER} g (float[1, 8, 5, 5] x, float[16, 1, 1, 1] k) => (float[1, 16, 5, 5] y) "
        "{ y = Conv <group = 8> (x, k) }"
    )
    assert group_attribute(paired(before)) == 8


@pytest.mark.parametrize("groups", [2, 8])
def test_the_zeros_between_a_pair_are_no_work_of_the_model(groups: int) -> None:
    before = convolution(groups, 1, 4, batch="1")
    assert graph_work(paired(before), batch=1).macs == graph_work(before, batch=1).macs == groups * 4 * 3 * 3 * 9


@pytest.mark.parametrize(("precision", "groups"), [("fp16", 4), ("fp32", 8)])
def test_tensorrt_needs_it_in_fp16_alone(precision: Precision, groups: int) -> None:
    after = passes.specialize(convolution(8, 1, 2), "trt", precision=precision)
    assert group_attribute(after) == groups
