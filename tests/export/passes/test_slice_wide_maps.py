"""Wide maps between two pointwise convolutions in slices of channels."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes import specialize
from edgevit.export.passes.slice_wide_maps import slice_wide_maps
from tests.helpers.graphs import HEADER, assert_same, noise, parse

CHANNELS = 40  # 2.5 blocks of 16
EXPAND = "x = Conv (image, w1, b1)"
RELU = "p = Mul (x, a) q = Mul (x, b) y = Max (p, q)"
SPATIAL = "z = Conv <group = 40, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (y, w3, b3)"
SECOND = "r = Mul (z, a) s = Mul (z, number) t = Max (r, s)"
REDUCE = "out = Conv (t, w2, b2)"


def graph(body: str, *, side: int = 96, output: str = "float[N, 8, H, W] out") -> OnnxGraph:
    """Parse a graph whose maps of 40 channels have 1.5 MB at the default size."""
    inputs = f"float[N, 8, {side}, {side}] image, float[N, 40, 1, 1] a, float[N, 40, {side}, {side}] whole"
    return parse(
        f"{HEADER} g ({inputs}) => ({output}) {{ {body} }}",
        b=noise(40, 1, 1, seed=2),
        number=np.asarray(0.25, np.float32),
        w1=noise(40, 8, 1, 1, seed=3),
        b1=noise(40, seed=4),
        w2=noise(8, 40, 1, 1, seed=5),
        b2=noise(8, seed=6),
        w3=noise(40, 1, 3, 3, seed=7),
        b3=noise(40, seed=8),
        w33=noise(8, 40, 3, 3, seed=10),
        w40=noise(40, 10, 1, 1, seed=11),
    )


def sliced(before: OnnxGraph) -> OnnxGraph:
    return before.apply("slice_wide_maps", slice_wide_maps)


def test_each_slice_is_computed_from_end_to_end() -> None:
    before = graph(f"{EXPAND} {RELU} {SPATIAL} {SECOND} {REDUCE}")
    after = sliced(before)
    assert after.operators == {"Conv": 9, "Mul": 12, "Max": 6, "Split": 1, "Add": 2}
    nodes = [node for node in after.model.graph if node.op_type == "Conv"]
    assert [node.outputs[0].shape[1] for node in nodes] == [16, 16, 8, 16, 16, 8, 8, 8, 8]  # type: ignore[index]
    assert_same(before, after)
    assert sliced(after).operators == after.operators


@pytest.mark.parametrize("value", [1e-15, 1e6, 1e15])
def test_small_and_large_numbers(value: float) -> None:
    scaled = f"scale = Constant <value_float = {value}> () large = Mul (image, scale) x = Conv (large, w1)"
    before = graph(f"{scaled} {RELU} t = Relu (y) {REDUCE}")
    after = sliced(before)
    assert after.operators["Max"] == 3
    assert_same(before, after)


def test_a_concatenation_is_cut_between_its_parts() -> None:
    body = f"part = Abs (image) x = Concat <axis = 1> (part, image, part, image, part) {RELU} t = Relu (y) {REDUCE}"
    before = graph(body)
    assert sliced(before).operators == before.operators  # five parts are not four equal slices
    before = graph(body, side=140)
    after = sliced(before)
    assert after.operators["Concat"] == 0 and after.operators["Max"] == 5
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        f"{EXPAND} y = Relu (x) t = Mul (y, a) {REDUCE}",  # two elementwise operators
        f"{EXPAND} p = Mul (x, a) q = Mul (x, whole) t = Max (p, q) {REDUCE}",  # a map from elsewhere
        f"{EXPAND} {RELU} t = Softmax <axis = 1> (y) {REDUCE}",  # an operator over the channels
        f"{EXPAND} {RELU} t = Conv <group = 4> (y, w40) {REDUCE}",  # a convolution over some of them
        f"{EXPAND} {RELU} t = Relu (y) out = Conv (t, w33)",  # a last convolution that is not pointwise
        f"x = Relu (whole) {RELU} t = Relu (y) {REDUCE}",  # no convolution in front
    ],
)
def test_other_maps_stay(body: str) -> None:
    before = graph(body)
    after = sliced(before)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_a_map_that_is_read_elsewhere_stays() -> None:
    output = "float[N, 8, H, W] out, float[N, 40, 96, 96] y"
    before = graph(f"{EXPAND} {RELU} t = Relu (y) {REDUCE}", output=output)
    assert sliced(before).operators == before.operators
    read = graph(f"{EXPAND} {RELU} t = Relu (y) o = Conv (t, w2) m = ReduceMean (y) out = Add (o, m)")
    assert sliced(read).operators == read.operators


def test_a_map_that_fits_into_the_cache_stays() -> None:
    before = graph(f"{EXPAND} {RELU} {SPATIAL} {SECOND} {REDUCE}", side=28)
    assert sliced(before).operators == before.operators


@pytest.mark.parametrize(("target", "convolutions"), [("ort", 9), ("openvino", 3), ("trt", 3), ("onnx", 3)])
def test_only_onnx_runtime_gets_slices(target: str, convolutions: int) -> None:
    before = graph(f"{EXPAND} {RELU} {SPATIAL} {SECOND} {REDUCE}")
    assert specialize(before, target).operators["Conv"] == convolutions
