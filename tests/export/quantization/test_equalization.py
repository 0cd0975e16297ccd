"""Equalized channels: fp32 results stay equal bit by bit, and int8 keeps more of unequal channels."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.errors import PrecisionError
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import collect_ranges
from edgevit.export.quantization.equalization import equalize, find_pairs
from edgevit.export.quantization.int8 import find_layers, quantize
from edgevit.export.quantization.sensitivity import NoiseMeasurement, QuantizationPlan, quantize_with_fallback
from edgevit.types import Array
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import noise
from tests.helpers.quantization import checked_graph, int8_converter, load, output, snr_db

CHANNELS, SIDE = 16, 8
IMAGE = noise(4, 4, SIDE, SIDE, seed=9)
FEEDS = [{"x": IMAGE}]


def depthwise_chain(activation: str = "Relu (a)") -> OnnxGraph:
    """Return pointwise, depthwise and pointwise convolutions; the channels between them differ by up to a thousand."""
    spread = np.geomspace(1, 1000, CHANNELS).astype(np.float32)[:, None, None, None]
    weights: dict[str, Array] = {
        "w1": noise(CHANNELS, 4, 1, 1, scale=0.5) * spread,
        "b1": noise(CHANNELS, scale=0.1, seed=2) * spread[:, 0, 0, 0],
        "w2": noise(CHANNELS, 1, 3, 3, scale=0.3, seed=3) / spread,
        "w3": noise(4, CHANNELS, 1, 1, scale=0.3, seed=4),
    }
    return checked_graph(
        f"""(float[batch, 4, {SIDE}, {SIDE}] x) => (float[batch, 4, {SIDE}, {SIDE}] y) {{
        a = Conv (x, w1, b1)
        r = {activation}
        d = Conv <group = {CHANNELS}, pads = [1, 1, 1, 1]> (r, w2)
        s = Relu (d)
        y = Conv (s, w3)
    }}""",
        **weights,
    )


def int8_snr_db(graph: OnnxGraph, fmt: str) -> float:
    layers = [layer.name for layer in find_layers(graph)]
    quantized = quantize(graph, layers, collect_ranges(graph, FEEDS, load=load), scheme=INT8_SCHEMES[fmt])
    return snr_db(output(graph, IMAGE), output(quantized, IMAGE))


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_equal_channels_keep_fp32_bit_by_bit_and_gain_in_int8(fmt: str) -> None:
    graph = depthwise_chain()
    equalized = equalize(graph, FEEDS, scheme=INT8_SCHEMES[fmt], load=load)
    assert equalized is not None
    assert np.array_equal(output(graph, IMAGE), output(check(equalized), IMAGE))
    assert int8_snr_db(check(equalized), fmt) > int8_snr_db(graph, fmt) + 6


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_convolutions_of_sequences_have_equal_channels_too(fmt: str) -> None:
    graph = checked_graph(
        "(float[batch, 4, 16] x) => (float[batch, 4, 16] y) { a = Conv (x, v)  r = Relu (a)  y = Conv (r, w) }",
        v=noise(CHANNELS, 4, 1) * np.geomspace(1, 1000, CHANNELS).astype(np.float32)[:, None, None],
        w=noise(4, CHANNELS, 1, seed=2),
    )
    sequence = noise(2, 4, 16, seed=3)
    equalized = equalize(graph, [{"x": sequence}], scheme=INT8_SCHEMES[fmt], load=load)
    assert equalized is not None
    assert np.array_equal(output(graph, sequence), output(check(equalized), sequence))


def test_a_graph_that_int8_loses_is_converted_with_equal_channels() -> None:
    """Without them all layers have to be float."""
    graph = depthwise_chain()
    converter = int8_converter(graph, IMAGE, fmt="ort")
    rejected = converter.acceptance_check(FEEDS)
    ranges = collect_ranges(graph, FEEDS, load=load)
    with pytest.raises(PrecisionError, match="int8 changes the outputs too much"):
        quantize_with_fallback(
            graph,
            ranges,
            scheme=INT8_SCHEMES["ort"],
            acceptance_check=rejected,
            measurement=NoiseMeasurement(feeds=FEEDS, load=load),
        )
    quantized, plan = converter.convert()
    assert isinstance(plan, QuantizationPlan) and plan.fraction >= 0.5
    assert "equalize" in [record.name for record in quantized.history]
    assert rejected(quantized) == ""


def test_only_operators_that_keep_a_factor_stand_between_a_pair() -> None:
    scheme = INT8_SCHEMES["openvino"]
    assert [(pair.first, pair.second) for pair in find_pairs(depthwise_chain(), scheme=scheme)] == [
        ("net/a", "net/d"),
        ("net/d", "net/y"),
    ]
    for other in ("HardSwish (a)", "Sigmoid (a)"):
        assert [pair.first for pair in find_pairs(depthwise_chain(other), scheme=scheme)] == ["net/d"]


def test_a_graph_without_a_pair_is_left_as_it_is() -> None:
    graph = checked_graph("(float[batch, 4] x) => (float[batch, 4] y) { y = MatMul (x, w) }", w=noise(4, 4))
    assert equalize(graph, [{"x": noise(2, 4)}], scheme=INT8_SCHEMES["ort"], load=load) is None
