"""Layers that predict boxes and scores, and the decoding, keep their precision in fp16 and int8."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.fp16 import to_fp16
from edgevit.export.quantization.int8 import PREDICTS, find_layers
from edgevit.export.quantization.predictions import prediction_nodes
from tests.helpers.quantization import checked_graph, load

# A detector of one level: cells of 4 pixels in an image of 2048 x 16, a box and two scores a cell.
CELLS = 512 * 4
DETECTOR = f"""(float[1, 3, 16, 2048] x) => (float[1, {CELLS}, 4] boxes, float[1, {CELLS}, 2] scores)
    <int64[3] two = {{1, 2, {CELLS}}}, int64[3] four = {{1, 4, {CELLS}}}, int64[2] halves = {{2, 2}}> {{
        map = Conv <strides = [4, 4]> (x, w_stem)
        stacked = Relu (map)
        logits = Conv (stacked, w_cls)
        deltas = Conv (stacked, w_reg)
        flat_logits = Reshape (logits, two)
        by_cell = Transpose <perm = [0, 2, 1]> (flat_logits)
        scores = Sigmoid (by_cell)
        flat_deltas = Reshape (deltas, four)
        cells = Transpose <perm = [0, 2, 1]> (flat_deltas)
        shift, log_side = Split <axis = 2> (cells, halves)
        center = Add (shift, centers)
        side = Exp (log_side)
        low = Sub (center, side)
        high = Add (center, side)
        boxes = Concat <axis = 2> (low, high)
    }}"""
PREDICTING = {"logits", "deltas"}
DECODING = {
    *("flat_logits", "by_cell", "scores"),
    *("flat_deltas", "cells", "shift", "center", "side", "low", "high", "boxes"),
}


def detector() -> OnnxGraph:
    random = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(512) * 4.0, np.arange(4) * 4.0)
    return checked_graph(
        DETECTOR,
        w_stem=random.normal(0, 0.2, (16, 3, 4, 4)).astype(np.float32),
        w_cls=random.normal(0, 0.3, (2, 16, 1, 1)).astype(np.float32),
        w_reg=random.normal(0, 0.1, (4, 16, 1, 1)).astype(np.float32),
        centers=np.stack([x, y], -1).reshape(1, -1, 2).astype(np.float32),
    )


def photo() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(0, 1, (1, 3, 16, 2048)).astype(np.float32)}


def names(graph: OnnxGraph) -> set[str]:
    return {str(node.name).removeprefix("net/") for node in prediction_nodes(graph.model)}


def test_a_detectors_last_layers_and_decoding_are_found() -> None:
    assert names(detector()) == PREDICTING | DECODING


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("y = Conv (map, w)", "logits"),
        ("z = Conv (map, w) y = Softmax (z)", "probabilities of a classifier"),
        ("z = Conv (map, w) gate = Sigmoid (z) y = Mul (z, gate)", "SiLU"),
        ("z = Conv (map, w) gate = Sigmoid (z) y = Mul (map, gate)", "a gate on the map before"),
        ("gate = Sigmoid (map) y = Conv (gate, w)", "a layer follows"),
    ],
)
def test_other_ends_are_no_predictions(end: str, why: str) -> None:
    text = f"(float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {{ map = Conv (x, v) {end} }}"
    weight = np.ones((4, 4, 1, 1), np.float32)
    assert names(checked_graph(text, v=weight, w=weight)) == set(), why


def test_fp16_boxes_beyond_1024_pixels_are_right_to_a_twentieth_of_a_pixel() -> None:
    graph = detector()
    half, plan = to_fp16(graph, [photo()], load=load)
    kept = {node.name.removeprefix("net/") for node in plan.kept}
    assert kept >= PREDICTING | DECODING
    assert not kept & {"map", "stacked"}
    expected, actual = load(graph)(photo()), load(half)(photo())
    assert expected["boxes"].max() > 1024
    assert np.abs(actual["boxes"] - expected["boxes"]).max() < 0.05


def test_int8_leaves_the_layers_out_that_predict() -> None:
    reasons = {layer.name.removeprefix("net/"): layer.skip_reason for layer in find_layers(detector())}
    assert reasons == {"map": "", "logits": PREDICTS, "deltas": PREDICTS}


def test_int8_takes_them_if_they_do_most_of_the_work() -> None:
    text = "(float[1, 4, 8, 8] x) => (float[1, 64, 8, 8] y) { map = Conv (x, v) z = Conv (map, w) y = Sigmoid (z) }"
    graph = checked_graph(text, v=np.ones((4, 4, 1, 1), np.float32), w=np.ones((64, 4, 1, 1), np.float32))
    assert [layer.skip_reason for layer in find_layers(graph)] == ["", ""]
