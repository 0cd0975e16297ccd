"""Zero points of int8 linear layers in their biases: the same numbers; other layers and readers keep theirs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.calibration import ValueRange
from edgevit.export.quantization.fold_zero_points import fold_zero_points
from edgevit.export.quantization.int8 import quantize
from edgevit.formats import Int8Scheme, get_format
from tests.helpers.graphs import HEADER, assert_same, noise, parse
from tests.helpers.quantization import checked_graph

WEIGHTS = {"w": noise(6, 10), "v": noise(6, 10, seed=3), "b": noise(10, seed=2), "k": noise(4, 6, 1, 1, seed=5)}
SIGNED = ValueRange((-3.0,), (4.0,))
OUTPUT = "float[N, 9, 10] y"


def int8_graph(body: str, *, outputs: str = OUTPUT, x: str = "N, 9, 6", range_of_x: ValueRange = SIGNED) -> OnnxGraph:
    """Return a graph whose layers on `x` are in int8."""
    graph = checked_graph(f"(float[{x}] x) => ({outputs}) {{ {body} }}", **WEIGHTS)
    layers = [str(node.name) for node in graph.model.graph if node.op_type in ("MatMul", "Conv")]
    return check(quantize(graph, layers, {"x": range_of_x}, scheme=Int8Scheme(activations="uint8")))


def folded(graph: OnnxGraph) -> OnnxGraph:
    return check(graph.apply("fold_zero_points", fold_zero_points))


def zero_points(graph: OnnxGraph) -> list[int]:
    """Return the zero points that MatMuls and Convs see, in the order of the graph."""
    activations = [node.inputs[0] for node in graph.model.graph if node.op_type in ("MatMul", "Conv")]
    nodes = [value.producer() for value in activations if value is not None]
    return [int(np.asarray(constant(node.inputs[2]))) for node in nodes if node is not None]


@pytest.mark.parametrize("body", ["a = MatMul (x, w)  y = Add (a, b)", "a = MatMul (x, w)  y = Add (b, a)"])
def test_the_bias_takes_the_zero_point(body: str) -> None:
    before = int8_graph(body)
    after = folded(before)
    assert zero_points(before) == [109]
    assert zero_points(after) == [0]
    assert after.operators == before.operators
    assert_same(before, after)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = MatMul (x, w)", OUTPUT),
        ("a = MatMul (x, w)  y = Relu (a)", OUTPUT),
        ("a = MatMul (x, w)  y = Add (a, b)  z = Relu (a)", f"{OUTPUT}, float[N, 9, 10] z"),
    ],
)
def test_a_layer_without_a_bias_gets_one(body: str, outputs: str) -> None:
    before = int8_graph(body, outputs=outputs)
    after = folded(before)
    assert zero_points(after) == [0]
    assert after.operators["Add"] == before.operators["Add"] + 1
    assert_same(before, after)


def test_layers_that_share_an_input_share_its_integers() -> None:
    before = int8_graph("a = MatMul (x, w)  c = MatMul (x, v)  d = Add (a, b)  y = Add (c, d)")
    after = folded(before)
    assert zero_points(after) == [0, 0]
    assert after.operators["QuantizeLinear"] == 1
    assert after.operators["DequantizeLinear"] == before.operators["DequantizeLinear"]
    assert_same(before, after)


def test_other_readers_keep_the_zero_point() -> None:
    before = int8_graph("a = MatMul (x, w)  y = Add (a, b)")
    dequantized = next(node for node in before.model.graph if node.op_type == "DequantizeLinear").outputs[0]
    relu = ir.node("Relu", [dequantized])
    relu.outputs[0].name, relu.outputs[0].shape, relu.outputs[0].type = "z", dequantized.shape, dequantized.type
    before.model.graph.append(relu)
    before.model.graph.outputs.append(relu.outputs[0])
    assert_same(before, folded(before))


@pytest.mark.parametrize(
    ("body", "outputs", "x", "range_of_x"),
    [
        ("y = MatMul (x, w)", OUTPUT, "N, 9, 6", ValueRange((0.0,), (4.0,))),  # the zero point is 0
        ("y = Conv (x, k)", "float[N, 4, 3, 3] y", "N, 6, 3, 3", SIGNED),  # its padding is the zero point
    ],
)
def test_others_stay(body: str, outputs: str, x: str, range_of_x: ValueRange) -> None:
    before = int8_graph(body, outputs=outputs, x=x, range_of_x=range_of_x)
    after = folded(before)
    assert zero_points(after) == zero_points(before)
    assert after.operators == before.operators


@pytest.mark.parametrize(
    "activation",
    [
        "q = QuantizeLinear (x, scale, zero)  a = DequantizeLinear (q, scale)",  # no zero point
        "q = QuantizeLinear <axis = 2> (x, scales, zeros)  a = DequantizeLinear <axis = 2> (q, scales, zeros)",  # six
        "a = Clip (x, low, high)",  # no integers
    ],
)
def test_an_input_without_one_zero_point_stays(activation: str) -> None:
    before = parse(
        f"{HEADER} g (float[N, 9, 6] x) => ({OUTPUT}) {{ {activation} "
        "d = DequantizeLinear <axis = 1> (integers, steps)  y = MatMul (a, d) }",
        scale=np.asarray(0.1, np.float32),
        zero=np.asarray(109, np.uint8),
        scales=np.full(6, 0.1, np.float32),
        zeros=np.arange(100, 106, dtype=np.uint8),
        low=np.asarray(-1, np.float32),
        high=np.asarray(1, np.float32),
        integers=np.arange(-30, 30, dtype=np.int8).reshape(6, 10),
        steps=np.full(10, 0.02, np.float32),
    )
    after = before.apply("fold_zero_points", fold_zero_points)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_openvino_alone_has_the_form() -> None:
    assert get_format("openvino").require_int8().fold_zero_points
    assert not get_format("ort").require_int8().fold_zero_points
