"""A graph in float64: the same operators, without the rounding of float32."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.errors import ExportError
from edgevit.export import float64
from edgevit.export.float64 import float64_evaluator
from edgevit.export.graph import OnnxGraph
from edgevit.pipeline.evaluators import graph_evaluator
from tests.helpers.graphs import HEADER, batchnorm_parameters, noise, parse


def network() -> OnnxGraph:
    text = f"""{HEADER} g (float[1, 3, 16, 16] x) => (float[1, 8] y) {{
        conv = Conv <pads = [1, 1, 1, 1]> (x, w)
        norm = BatchNormalization (conv, scale, bias, mean, var)
        act = Gelu (norm)
        least = Constant <value_float = -0.05> ()
        clipped = Max (act, least)
        pool = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (clipped)
        half = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (pool)
        flat = ReduceMean <keepdims = 0> (half, axes)
        ln = LayerNormalization (flat, scale, bias)
        number = Constant <value = int64[1] {{4096}}> ()
        large = Cast <to = 1> (number)
        sum = Add (ln, large)
        y = Sub (sum, large)
    }}"""
    return parse(text, w=noise(8, 3, 3, 3), axes=np.array([2, 3], np.int64), **batchnorm_parameters(8))


def test_the_result_is_that_of_float32_without_its_rounding() -> None:
    feeds = {"x": noise(1, 3, 16, 16)}
    exact, rounded = float64_evaluator(network())(feeds)["y"], graph_evaluator(network())(feeds)["y"]
    assert exact.dtype == np.float64
    assert 1e-6 < np.abs(exact - rounded).max() < 4096 * np.finfo(np.float32).eps


def test_an_operator_that_runs_value_by_value_is_refused() -> None:
    text = f"""{HEADER} g (float[1, 3, 4, 4] x) => (float[1, 3, 8, 8] y) {{
        y = Resize <mode = "nearest"> (x, , scales)
    }}"""
    graph = parse(text, scales=np.array([1, 1, 2, 2], np.float32))
    with pytest.raises(ExportError, match="operator Resize does not run in float64"):
        float64_evaluator(graph)


def test_a_large_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float64, "MAX_MACS", 1000)
    with pytest.raises(ExportError, match="the graph has more than .* billion MACs"):
        float64_evaluator(network())
