"""Narrow groups of a convolution become wide ones with the same result; others stay."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit import cpu
from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs, graph_work
from edgevit.export.passes.merge_groups import merge_groups
from edgevit.types import Array, Precision
from tests.helpers.graphs import HEADER, assert_same, noise, parse

LANES = 16


def convolution(groups: int, inputs: int, outputs: int, *, window: int = 3, stride: int = 1) -> OnnxGraph:
    """A convolution with a bias; `inputs` and `outputs` are those of a group."""
    pad = window // 2
    return parse(
        f"{HEADER} g (float[1, {groups * inputs}, 5, 6] x) => (float[1, {groups * outputs}, H, W] y) {{ y = Conv "
        f"<group = {groups}, kernel_shape = [{window}, {window}], pads = [{pad}, {pad}, {pad}, {pad}], "
        f"strides = [{stride}, 1]> (x, w, b) }}",
        w=noise(groups * outputs, inputs, window, window, seed=2),
        b=noise(groups * outputs, seed=3),
    )


def merged(graph: OnnxGraph) -> OnnxGraph:
    return graph.apply("merge_groups", lambda model: merge_groups(model, lanes=LANES))


def groups_of(graph: OnnxGraph) -> list[int | None]:
    return [node.attributes.get_int("group", 1) for node in graph.model.graph if node.op_type == "Conv"]


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "expected"),
    [(8, 4, 4, 2), (8, 8, 8, 4), (8, 16, 4, 2), (8, 4, 8, 2), (4, 32, 8, 2), (4, 4, 12, 1)],
)
@pytest.mark.parametrize("form", [{}, {"window": 1}, {"stride": 2}])
def test_narrow_groups_become_one(groups: int, inputs: int, outputs: int, expected: int, form: dict[str, int]) -> None:
    before = convolution(groups, inputs, outputs, **form)
    after = merged(before)
    assert groups_of(after) == [expected]
    assert_same(before, after)


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs"),
    [
        (4, 16, 16),  # whole vectors
        (4, 4, 16),  # outputs that fill one
        (8, 1, 4),  # a depthwise convolution
        (8, 1, 1),
        (3, 8, 8),  # a number of groups that two does not divide
        (8, 2, 2),  # eight times the products
        (1, 4, 4),  # no groups
    ],
)
def test_other_groups_stay(groups: int, inputs: int, outputs: int) -> None:
    before = convolution(groups, inputs, outputs)
    after = merged(before)
    assert groups_of(after) == [groups]
    assert_same(before, after, exact=True)


def test_kernels_that_are_computed_stay() -> None:
    before = parse(
        f"{HEADER} g (float[1, 32, 5, 5] x, float[32, 4, 1, 1] k) => (float[1, 32, 5, 5] y) "
        "{ y = Conv <group = 8> (x, k) }"
    )
    assert groups_of(merged(before)) == [8]


def test_an_empty_vector_merges_nothing() -> None:
    before = convolution(8, 4, 4)
    assert groups_of(before.apply("merge_groups", lambda model: merge_groups(model, lanes=0))) == [8]


def test_a_depthwise_convolution_stays_with_narrow_vectors_too() -> None:
    before = convolution(8, 1, 1)
    assert groups_of(before.apply("merge_groups", lambda model: merge_groups(model, lanes=4))) == [8]


def test_an_operator_of_another_domain_stays() -> None:
    before = convolution(8, 4, 4)
    (node,) = before.model.graph
    node.domain = "some.vendor"
    assert groups_of(merged(before)) == [8]


def test_kernels_that_another_convolution_reads_stay_as_they_are() -> None:
    before = parse(
        f"{HEADER} g (float[1, 32, 5, 5] x, float[1, 4, 5, 5] one) => (float[1, 32, 5, 5] y, float[1, 32, 5, 5] z) "
        "{ y = Conv <group = 8> (x, w) z = Conv (one, w) }",
        w=noise(32, 4, 1, 1),
    )
    after = merged(before)
    assert groups_of(after) == [2, 1]
    assert_same(before, after)


def test_zeros_between_merged_groups_are_executed_and_are_no_work_of_the_model() -> None:
    before = convolution(8, 4, 4)
    after = merged(before)
    macs = 32 * 5 * 6 * 4 * 9
    assert graph_work(after, batch=1).macs == graph_work(before, batch=1).macs == macs
    assert graph_macs(after) == 4 * macs


@pytest.mark.parametrize(
    ("groups", "weight"),
    [
        (8, np.zeros((32, 4, 1, 1), np.float32)),  # all
        (1, np.eye(32, dtype=np.float32)[:, :, np.newaxis, np.newaxis]),  # of a convolution without groups
    ],
)
def test_other_zeros_are_work(groups: int, weight: Array) -> None:
    graph = parse(
        f"{HEADER} g (float[1, 32, 1, 1] x) => (float[1, 32, 1, 1] y) {{ y = Conv <group = {groups}> (x, w) }}",
        w=weight,
    )
    assert graph_work(graph, batch=1).macs == weight.size


@pytest.mark.parametrize(
    ("flags", "fmt", "precision", "expected"),
    [
        ("avx2", "ort", "fp32", 4),
        ("avx2 avx_vnni", "ort", "int8", 4),
        ("avx2", "onnx", "fp32", 8),
        ("avx2", "openvino", "fp32", 4),
        ("avx2 avx_vnni", "openvino", "int8", 4),
        ("avx2", "trt", "fp16", 8),
        ("asimd", "ort", "fp32", 8),
        ("asimd", "openvino", "fp32", 8),
        ("avx2 avx512f", "ort", "fp32", 2),
        ("avx2 avx512f", "ort", "int8", 2),
        ("avx2 avx512f", "onnx", "fp32", 8),  # for other runtimes and machines
        ("avx2 avx512f", "openvino", "int8", 8),
        ("avx2 avx512f", "openvino", "fp32", 2),
        ("avx2 avx512f amx_bf16", "openvino", "int8", 2),
        ("avx2 avx512f amx_bf16", "openvino", "bf16", 2),
        ("avx2 avx512f amx_bf16", "openvino", "fp32", 2),
        ("avx2 avx512f amx_bf16", "trt", "fp16", 8),
    ],
)
def test_groups_are_merged_where_that_is_faster(
    flags: str, fmt: str, precision: Precision, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    assert groups_of(passes.specialize(convolution(8, 4, 4), fmt, precision=precision)) == [expected]
