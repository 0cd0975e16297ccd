"""Large GroupNorms as sums of rows."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes import specialize
from edgevit.export.passes.group_norm_by_rows import group_norm_by_rows
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.types import Array
from tests.helpers.graphs import HEADER, noise, parse

CHANNELS, SIDE = 36, 128  # more than 2^19 values


def norm(shape: str = f"N, {CHANNELS}, {SIDE}, {SIDE}", *, groups: int = 1) -> OnnxGraph:
    return parse(
        f"""{HEADER} g (float[{shape}] x) => (float[{shape}] y) {{
            y = GroupNormalization <num_groups = {groups}, epsilon = 0.01> (x, scale, bias)
        }}""",
        scale=noise(CHANNELS, offset=1),
        bias=noise(CHANNELS, seed=2),
    )


def expected(x: Array) -> Array:
    values = x.astype(np.float64)
    normalized: Array = (values - values.mean((1, 2, 3), keepdims=True)) / np.sqrt(
        values.var((1, 2, 3), keepdims=True) + 0.01
    )
    scale, bias = (values.reshape(-1, 1, 1) for values in (noise(CHANNELS, offset=1), noise(CHANNELS, seed=2)))
    return np.asarray(normalized * scale + bias)


@pytest.mark.parametrize("fmt", ["onnx", "ort", "openvino"])
def test_a_large_norm_is_as_accurate_as_in_pytorch(fmt: str) -> None:
    """In one sum ONNX Runtime is off by some 1e-4 here."""
    graph = specialize(norm(), fmt)
    assert dict(graph.operators) == {
        "ReduceMean": 3, "ReduceSumSquare": 1, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1
    }  # fmt: skip
    x = noise(2, CHANNELS, SIDE, SIDE, offset=3)
    assert np.abs(graph_evaluator(graph)({"x": x})["y"] - expected(x)).max() < 2e-5


def test_a_captured_graph_is_evaluated_as_accurately() -> None:
    x = noise(1, CHANNELS, SIDE, SIDE, offset=3)
    assert np.abs(graph_evaluator(norm())({"x": x})["y"] - expected(x)).max() < 2e-5


@pytest.mark.parametrize("graph", [norm(f"N, {CHANNELS}, 64, 64"), norm(groups=2), norm(f"N, {CHANNELS}, H, {SIDE}")])
def test_other_norms_stay(graph: OnnxGraph) -> None:
    assert dict(graph.apply("group_norm_by_rows", group_norm_by_rows).operators) == {"GroupNormalization": 1}
