"""fp16: nodes that stay in fp32, Casts between precisions, and outputs that survive rounding to fp16."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgevit import create_model
from edgevit.errors import ExportError, PrecisionError, UsageError
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.group_norm_from_moments import group_norm_from_moments
from edgevit.export.quantization.dtypes import retype
from edgevit.export.quantization.emulation import emulate_fp16
from edgevit.export.quantization.fp16 import PrecisionPlan, to_fp16
from edgevit.export.quantization.fp16_rules import Fp16Context, find_fp32_nodes
from edgevit.models.loading import from_name
from edgevit.models.reference import compute_references
from edgevit.runtimes.parity import compare
from edgevit.runtimes.tensorrt_rtx import kernels
from edgevit.types import Array, Reference
from tests.helpers.cifar10 import Cifar10
from tests.helpers.graphs import HEADER, noise, parse
from tests.helpers.quantization import load, snr_db


def typed(graph: OnnxGraph, *images: Array) -> tuple[OnnxGraph, PrecisionPlan]:
    """Convert to fp16 and check that the graph is valid."""
    result, plan = to_fp16(graph, [{"x": image} for image in images], load=load)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)  # each operator's inputs have one type
    assert all(
        producer is None or producer.op_type != "Cast"
        for node in result.model.graph.all_nodes()
        if node.op_type == "Cast" and (producer := node.inputs[0].producer() if node.inputs[0] else None) is not None
    ), "a Cast reads a Cast"
    return result, plan


def with_all_in_fp16(graph: OnnxGraph) -> OnnxGraph:
    """Convert every node, as a converter without calibration does."""
    return graph.apply("retype", lambda model: retype(model, frozenset()))


def fp16_output(graph: OnnxGraph, image: Array) -> Array:
    """Return the output with every fp16 tensor rounded to fp16."""
    return load(emulate_fp16(graph))({"x": image})["y"]


def kept(plan: PrecisionPlan) -> list[str]:
    return [node.operator for node in plan.kept]


def dtypes(graph: OnnxGraph, op_type: str) -> list[list[str]]:
    """Return the input types of each node with this operator."""
    return [
        [str(value.dtype) for value in node.inputs if value is not None]
        for node in graph.model.graph.all_nodes()
        if node.op_type == op_type
    ]


ATTENTION = f"""{HEADER} g (float[batch, 10, 8] x) => (float[batch, 10, 8] y) {{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    scaled = Mul (q, scale)
    transposed = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (scaled, transposed)
    weights = Softmax (scores)
    y = MatMul (weights, v)
}}"""


def attention(*, gain: float = 1.0) -> OnnxGraph:
    weights = {name: noise(8, 8, scale=gain, seed=index) for index, name in enumerate(("wq", "wk", "wv"))}
    return parse(ATTENTION, scale=np.asarray(8**-0.5, np.float32), **weights)


# Casts and types


def test_attention_has_no_cast_inside() -> None:
    result, plan = typed(attention(), noise(2, 10, 8, seed=0))
    assert (kept(plan), plan.casts) == ([], 2)
    assert [node.op_type for node in result.model.graph][:2] == ["Cast", "MatMul"]
    assert result.model.graph[-1].op_type == "Cast"
    assert plan.summary == "0 of 8 nodes in fp32, 2 Casts"
    assert result.history[-1].note == plan.summary


def test_inputs_and_outputs_stay_fp32() -> None:
    result, plan = typed(attention(), noise(2, 10, 8, seed=0))
    assert [spec.dtype for spec in (*result.inputs, *result.outputs)] == ["float32", "float32"]
    assert [spec.name for spec in (*result.inputs, *result.outputs)] == ["x", "y"]
    assert plan.casts == 2


def test_the_nodes_of_named_modules_stay_in_fp32() -> None:
    graph = attention()
    for node in graph.model.graph:
        node.name = f"{'head.q' if node.op_type == 'Softmax' else 'body'}/{node.op_type}"
    _, plan = to_fp16(graph, [{"x": noise(1, 10, 8, seed=0)}], load=load, keep_float=["head"])
    assert [(node.operator, node.reason) for node in plan.kept] == [("Softmax", "kept in float by --keep-float")]


def test_weights_are_stored_as_fp16_under_their_names() -> None:
    result, _ = typed(attention(), noise(2, 10, 8, seed=0))
    assert {name: str(value.dtype) for name, value in result.model.graph.initializers.items()} == dict.fromkeys(
        ("scale", "wq", "wk", "wv"), "FLOAT16"
    )


def test_the_given_graph_is_not_changed() -> None:
    before = attention()
    content = before.to_bytes()
    result, _ = typed(before, noise(2, 10, 8, seed=0))
    typed_content = result.to_bytes()
    emulate_fp16(result)
    assert before.to_bytes() == content
    assert result.to_bytes() == typed_content


def test_integers_are_not_converted() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 6] x, int64[2] rows) => (float[batch, 2] y, int64[batch] best) {{
            one = Constant <value_ints = [1]> ()
            next = Add (rows, one)
            picked = Gather <axis = 1> (x, next)
            y = Relu (picked)
            best = ArgMax <axis = 1, keepdims = 0> (y)
        }}"""
    )
    feeds = {"x": noise(3, 6, seed=0), "rows": np.asarray([0, 3])}
    result, plan = to_fp16(graph, [feeds], load=load)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert dtypes(result, "Add") == [["INT64", "INT64"]]
    assert dtypes(result, "Gather") == [["FLOAT16", "INT64"]]
    assert [spec.dtype for spec in result.outputs] == ["float32", "int64"]
    assert kept(plan) == []


def test_computed_positions_stay_in_fp32() -> None:
    """fp16 holds no odd integer above 2048."""
    graph = parse(
        f"""{HEADER} g (float[batch, 4096] x, float[2] where) => (float[batch, 2] y) {{
            far = Mul (where, length)
            rows = Cast <to = 7> (far)
            picked = Gather <axis = 1> (x, rows)
            y = Relu (picked)
        }}""",
        length=np.asarray(4095, np.float32),
    )
    result, plan = to_fp16(
        graph, [{"x": noise(1, 4096, seed=0), "where": np.asarray([0.5, 0.99], np.float32)}], load=load
    )
    assert kept(plan) == ["Mul", "Cast"]
    assert dtypes(result, "Gather") == [["FLOAT16", "INT64"]]


def test_an_input_without_an_fp16_form_stays_in_fp32() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 1, 4, 4] x) => (float[batch, 1, 8, 8] y) {{
            y = Resize <mode = "linear"> (x, , scales)
        }}""",
        scales=np.asarray([1, 1, 2, 2], np.float32),
    )
    result, plan = typed(graph, noise(1, 1, 4, 4, seed=0))
    assert dtypes(result, "Resize") == [["FLOAT16", "FLOAT"]]
    assert kept(plan) == []


def test_one_cast_serves_all_readers() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
            a = Relu (x)
            b = Mul (a, large)
            c = Add (a, large)
            d = Mul (b, c)
            e = Div (d, large)
            y = Div (e, large)
        }}""",
        large=np.asarray(1e6, np.float32),
    )
    result, plan = typed(graph, noise(2, 4, seed=0))
    assert kept(plan) == ["Mul", "Add", "Mul", "Div", "Div"]
    assert [node.outputs[0].name for node in result.model.graph if node.op_type == "Cast"] == ["x_fp16", "a_fp32"]


def test_new_names_do_not_clash() -> None:
    graph = parse(f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ x_fp16 = Relu (x)  y = Neg (x_fp16) }}")
    result, _ = typed(graph, noise(2, 4, seed=0))
    names = [value.name for node in result.model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert np.array_equal(fp16_output(result, noise(2, 4, seed=0)) <= 0, np.ones((2, 4), bool))


def test_a_weight_used_in_both_precisions_is_stored_twice() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
            a = Mul (x, w)
            b = Exp (a)
            c = Div (w, b)
            y = Add (x, w)
            unread = Add (c, w)
        }}""".replace("float[batch, 4] y)", "float[batch, 4] y, float[batch, 4] unread)"),
        w=noise(4, seed=0),
    )
    result, plan = typed(graph, noise(2, 4, seed=0))
    assert kept(plan) == ["Mul", "Exp", "Div"]
    weights = {name: str(value.dtype) for name, value in result.model.graph.initializers.items()}
    assert weights == {"w": "FLOAT", "w_fp16": "FLOAT16"}


# Nodes that stay in fp32


def test_a_weight_beyond_the_range_stays_in_fp32() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
            a = Relu (x)
            b = MatMul (a, w)
            y = MatMul (b, v)
        }}""",
        w=np.diag([1e5, 1.0, 1.0, 1.0]).astype(np.float32),
        v=np.diag([1e-5, 1.0, 1e-7, 1.0]).astype(np.float32),
    )
    image = np.full((1, 4), 1e-3, np.float32)  # the products are small: only the weight is out of range
    result, plan = typed(graph, image)
    assert [(node.operator, node.reason) for node in plan.kept] == [
        ("MatMul", "constant w reaches 1e+05; fp16 ends at 65504")
    ]
    assert dtypes(result, "MatMul") == [["FLOAT", "FLOAT"], ["FLOAT16", "FLOAT16"]]
    found = {weight.name: weight for weight in plan.weights}
    assert (found["w"].beyond, found["w"].denormal, found["w"].stays_fp32) == (1, 0, True)
    assert (found["v"].beyond, found["v"].denormal, found["v"].lost, found["v"].stays_fp32) == (0, 2, 0, False)
    assert np.isfinite(fp16_output(result, image)).all()
    assert not np.isfinite(fp16_output(with_all_in_fp16(graph), image)).all()


EPSILON = f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
    axes = Constant <value_ints = [1]> ()
    size = Abs (x)
    sum = ReduceSum (size, axes)
    safe = %s
    transposed = Transpose <perm = [0, 1]> (safe)
    a = %s
    y = Relu (a)
}}"""


@pytest.mark.parametrize("guard", ["Add (sum, epsilon)", "Max (sum, epsilon)", "Clip (sum, epsilon)"])
@pytest.mark.parametrize("division", ["Div (x, transposed)", "Mul (x, inverse)"])
def test_an_epsilon_and_the_division_by_it_stay_in_fp32(guard: str, division: str) -> None:
    text = EPSILON % (guard, division)
    if "inverse" in division:
        text = text.replace("    a = ", "    inverse = Reciprocal (transposed)\n    a = ")
    graph = parse(text, epsilon=np.asarray(1e-8, np.float32))
    result, plan = typed(graph, noise(2, 4, seed=0))
    way = ["Transpose", "Div"] if "Div" in division else ["Transpose", "Reciprocal", "Mul"]
    assert kept(plan) == [guard.split(maxsplit=1)[0], *way]
    assert "constant epsilon is 1e-08" in plan.kept[0].reason
    black = np.zeros((2, 4), np.float32)
    assert np.array_equal(fp16_output(result, black), black)
    assert np.isnan(fp16_output(with_all_in_fp16(graph), black)).any()


def test_a_bias_near_zero_becomes_fp16() -> None:
    graph = parse(
        f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ a = Gemm (x, w, b)  y = Add (a, b) }}",
        w=noise(4, 4, seed=0),
        b=np.full(4, 1e-6, np.float32),
    )
    _, plan = typed(graph, noise(2, 4, seed=0))
    assert kept(plan) == []
    assert [(weight.name, weight.denormal) for weight in plan.weights] == [("b", 4)]


def test_a_bias_near_zero_of_a_transposed_convolution_becomes_fp16() -> None:
    graph = parse(
        f"{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 4, h, w] y) {{ y = ConvTranspose (x, w, b) }}",
        w=noise(4, 4, 2, 2, seed=0),
        b=np.full(4, 1e-6, np.float32),
    )
    _, plan = typed(graph, noise(2, 4, 3, 3, seed=0))
    assert kept(plan) == []


def test_nodes_that_overflow_on_calibration_images_stay_in_fp32() -> None:
    """With all nodes in fp16 the outputs are NaN."""
    graph = attention(gain=40.0)
    image = noise(2, 10, 8, scale=4, seed=0)
    expected = load(graph)({"x": image})["y"]
    result, plan = typed(graph, image)
    assert {"MatMul", "Softmax"} == set(kept(plan))
    assert any("scores reaches" in node.reason for node in plan.kept)
    assert snr_db(expected, fp16_output(result, image)) > 40
    assert not np.isfinite(fp16_output(with_all_in_fp16(graph), image)).all()


def product_of(factor: float) -> OnnxGraph:
    """Two layers of 32 and of 96 MACs; the first reads its input times a factor."""
    return parse(
        f"""{HEADER} g (float[2, 4] x) => (float[2, 12] y) {{
            a = Mul (x, factor)  b = MatMul (a, w)  c = Tanh (b)  y = MatMul (c, v)
        }}""",
        factor=np.asarray(factor, np.float32),
        w=noise(4, 4, seed=0),
        v=noise(4, 12, seed=1),
    )


@pytest.mark.parametrize(("factor", "fraction"), [(1.0, 1.0), (6e4, 0.75)])
def test_a_plan_has_the_fraction_of_macs_in_fp16(factor: float, fraction: float) -> None:
    _, plan = typed(product_of(factor), noise(2, 4, seed=0))
    assert plan.fraction == fraction
    assert plan.to_json()["share"] == fraction


def test_a_graph_without_macs_has_no_fraction() -> None:
    _, plan = typed(parse(f"{HEADER} g (float[2, 4] x) => (float[2, 4] y) {{ y = Exp (x) }}"), noise(2, 4, seed=0))
    assert (kept(plan), plan.fraction) == (["Exp"], None)


def test_a_graph_with_no_layer_in_fp16_is_an_error() -> None:
    graph = parse(
        f"{HEADER} g (float[2, 4] x) => (float[2, 4] y) {{ a = MatMul (x, w)  y = MatMul (a, w) }}",
        w=noise(4, 4, scale=1e5, seed=0),
    )
    _, plan = typed(graph, noise(2, 4, seed=0))
    assert plan.fraction == 0
    with pytest.raises(PrecisionError, match=r"2 of 2 nodes .* the first layer is \S+ \(.*reaches.*--precision fp32"):
        plan.require_fp16()
    typed(attention(), noise(1, 10, 8, seed=0))[1].require_fp16()


def test_no_node_stays_in_fp32_without_an_overflow() -> None:
    _, plan = typed(attention(gain=40.0), noise(2, 10, 8, scale=0.01, seed=0))
    assert kept(plan) == []


@pytest.mark.parametrize("scales", [(0.01, 4), (4, 0.01)])
def test_every_calibration_image_counts(scales: tuple[float, float]) -> None:
    _, plan = typed(attention(gain=40.0), *(noise(2, 10, 8, scale=scale, seed=0) for scale in scales))
    assert kept(plan)


def test_tensors_below_the_normal_numbers_stay_in_fp32() -> None:
    graph = parse(
        f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ a = Mul (x, x)  b = Mul (a, a)  y = Sqrt (b) }}"
    )
    image = np.full((1, 4), 0.013, np.float32)
    result, plan = typed(graph, image)
    assert kept(plan) == ["Mul", "Sqrt"]
    assert fp16_output(result, image) == pytest.approx(1.69e-4, rel=1e-3)
    assert fp16_output(with_all_in_fp16(graph), image) != pytest.approx(1.69e-4, rel=1e-3)


def test_a_mean_over_too_many_large_values_stays_in_fp32() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 2, 100, 100] x) => (float[batch, 2, 1, 1] y) {{
            a = Relu (x)
            y = GlobalAveragePool (a)
        }}"""
    )
    _, plan = typed(graph, np.full((1, 2, 100, 100), 10, np.float32))
    assert kept(plan) == ["GlobalAveragePool"]
    assert "a sum of 10000 terms" in plan.kept[0].reason


POOLING = f"""{HEADER} g (float[1, 4, PIXELS] x) => (float[1, 2, 4] y) {{
    a = Relu (x)
    logits = MatMul (w, a)
    weights = Softmax <axis = -1> (logits)
    pixels = Transpose <perm = [0, 2, 1]> (a)
    seen = MatMul (weights, pixels)
    y = MatMul (seen, out)
}}"""


@pytest.mark.parametrize(("pixels", "nodes"), [(128 * 128, ["Softmax", "MatMul"]), (64 * 64, [])])
def test_tokens_pool_the_pixels_of_a_large_map_in_fp32(pixels: int, nodes: list[str]) -> None:
    graph = parse(POOLING.replace("PIXELS", str(pixels)), w=noise(1, 2, 4, seed=0), out=noise(4, 4, seed=1))
    _, plan = typed(graph, noise(1, 4, pixels, seed=2))
    assert kept(plan) == nodes
    assert all(f"equal weights over {pixels} pixels are 6.1e-05" in each.reason for each in plan.kept)


def test_attention_of_as_many_queries_as_pixels_is_left_to_the_engine() -> None:
    graph = parse(
        f"""{HEADER} g (float[16384, 16384] x) => (float[16384, 2] y) {{
            weights = Softmax (x)
            y = MatMul (weights, v)
        }}""",
        v=np.zeros((16384, 2), np.float32),
    )
    context = Fp16Context(graph.model, {})
    assert not find_fp32_nodes(context)


PERFORMER = f"""{HEADER} g (float[batch, 50, 16] x) => (float[batch, 50, 16] y) {{
    two = Constant <value_float = 2.0> ()
    last = Constant <value_ints = [-1]> ()
    tokens = Constant <value_ints = [1]> ()
    kqv = MatMul (x, w_kqv)
    k, q, v = Split <axis = -1, num_outputs = 3> (kqv)
    k_w = MatMul (k, w)
    k_k = Mul (k, k)
    k_sum = ReduceSum (k_k, last)
    k_half = Div (k_sum, two)
    k_exponent = Sub (k_w, k_half)
    phi_k = Exp (k_exponent)
    q_w = MatMul (q, w)
    q_q = Mul (q, q)
    q_sum = ReduceSum (q_q, last)
    q_half = Div (q_sum, two)
    q_exponent = Sub (q_w, q_half)
    phi_q = Exp (q_exponent)
    sum = ReduceSum (phi_k, tokens)
    sum_t = Transpose <perm = [0, 2, 1]> (sum)
    weight = MatMul (phi_q, sum_t)
    phi_t = Transpose <perm = [0, 2, 1]> (phi_k)
    kv = MatMul (phi_t, v)
    numerator = MatMul (phi_q, kv)
    denominator = Add (weight, epsilon)
    mixed = Div (numerator, denominator)
    out = MatMul (mixed, w_out)
    y = Add (v, out)
}}"""


def test_the_performer_stays_in_fp32_from_the_exponents_to_the_division() -> None:
    graph = parse(
        PERFORMER,
        w_kqv=noise(16, 48, scale=0.3, seed=0),
        w=noise(16, 8, seed=1),
        w_out=noise(16, 16, seed=2),
        epsilon=np.asarray(8e-8, np.float32),
    )
    image = noise(2, 50, 16, scale=1.5, seed=3)
    expected = load(graph)({"x": image})["y"]
    result, plan = typed(graph, image)
    assert len(kept(plan)) == 20  # all nodes between the Split and the last matmul
    assert kept(plan).count("MatMul") == 5
    assert plan.casts == 2 + 3 + 1  # input and output; k, q and v; the quotient
    assert snr_db(expected, fp16_output(result, image)) > 55
    assert not snr_db(expected, fp16_output(with_all_in_fp16(graph), image)) > 40


@pytest.mark.parametrize("end", ["Relu (c)", "Div (a, c)"])
def test_an_exponential_is_followed_at_most_to_the_next_layer(end: str) -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
            a = Relu (x)
            b = Exp (a)
            c = MatMul (b, w)
            y = {end}
        }}""",
        w=noise(4, 4, seed=0),
    )
    _, plan = typed(graph, noise(2, 4, seed=0))
    assert kept(plan) == ["Exp"]


def test_the_logarithm_of_a_sum_of_exponentials_stays_in_fp32() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 1] y) {{
            axes = Constant <value_ints = [1]> ()
            a = Relu (x)
            b = Exp (a)
            c = ReduceSum (b, axes)
            d = Log (c)
            y = Neg (d)
        }}"""
    )
    _, plan = typed(graph, noise(2, 4, seed=0))
    assert kept(plan) == ["Exp", "ReduceSum", "Log"]


def test_a_product_written_out_stays_in_fp32() -> None:
    """A matmul adds up in fp32."""
    graph = parse(
        f"""{HEADER} g (float[batch, 1, 512] x) => (float[batch, 4] y) {{
            last = Constant <value_ints = [2]> ()
            a = Mul (x, w)
            b = ReduceSum <keepdims = 0> (a, last)
            y = Relu (b)
        }}""",
        w=noise(4, 512),
    )
    _, plan = typed(graph, noise(2, 1, 512, seed=0))
    assert kept(plan) == ["Mul", "ReduceSum"]
    assert {each.reason for each in plan.kept} == {"a product written out as multiplications and a sum"}


def test_exponentials_of_one_softmax_keep_their_maximum_in_fp32() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 2] x) => (float[batch, 1] y) {{
            a, b = Split <axis = 1, num_outputs = 2> (x)
            c = Max (a, b)
            d = Sub (a, c)
            e = Sub (b, c)
            f = Exp (d)
            h = Exp (e)
            i = Add (f, h)
            j = Div (f, i)
            y = Relu (j)
        }}"""
    )
    _, plan = typed(graph, noise(2, 2, seed=0))
    assert kept(plan) == ["Split", "Max", "Sub", "Sub", "Exp", "Exp", "Add", "Div"]


NORM_2D = f"""{HEADER} g (float[batch, 6, 4, 4] x) => (float[batch, 6, 4, 4] y) {{
    axis = Constant <value_ints = [1]> ()
    square = Constant <value_float = 2.0> ()
    a = Conv (x, w)
    mean = ReduceMean (a, axis)
    centered = Sub (a, mean)
    squares = Pow (centered, square)
    variance = ReduceMean (squares, axis)
    safe = Add (variance, epsilon)
    deviation = Sqrt (safe)
    normal = Div (centered, deviation)
    scaled = Mul (normal, gamma)
    y = Add (scaled, beta)
}}"""


def test_norm_statistics_as_separate_nodes_stay_in_fp32() -> None:
    graph = parse(
        NORM_2D,
        w=noise(6, 6, 1, 1, seed=0),
        gamma=noise(6, 1, 1, seed=1),
        beta=noise(6, 1, 1, seed=2),
        epsilon=np.asarray(1e-3, np.float32),  # large enough for fp16
    )
    image = noise(2, 6, 4, 4, scale=100, seed=0)  # the squares exceed 65504, their root does not
    result, plan = typed(graph, image)
    assert kept(plan) == ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div"]
    assert plan.casts == 4  # input and output of the graph and of the norm
    expected = load(graph)({"x": image})["y"]
    assert snr_db(expected, fp16_output(result, image)) > 55
    assert not snr_db(expected, fp16_output(with_all_in_fp16(graph), image)) > 40


def test_norm_statistics_from_moments_stay_in_fp32() -> None:
    """With the normalization; the transposes before and after it are in fp16."""
    graph = parse(
        f"""{HEADER} g (float[batch, 6, 64, 64] x) => (float[batch, 6, 64, 64] y) {{
            a = Conv (x, w)
            b = Relu (a)
            n = GroupNormalization <num_groups = 1, epsilon = 0.01> (b, gamma, beta)
            y = Conv (n, w)
        }}""",
        w=noise(6, 6, 1, 1, seed=0),
        gamma=np.ones(6, np.float32),
        beta=np.zeros(6, np.float32),
    )
    graph = check(
        graph.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, channels_last=True))
    )
    result, plan = typed(graph, noise(2, 6, 64, 64, scale=30, seed=0))
    floating = [node.op_type for node in graph.model.graph if node.op_type not in ("Conv", "Relu", "Transpose")]
    assert kept(plan) == floating
    # Input and output of the graph; input of the norm, transposed or not; the normalized values.
    assert plan.casts == 5
    image = noise(2, 6, 64, 64, scale=30, seed=0)
    assert snr_db(load(graph)({"x": image})["y"], fp16_output(result, image)) > 55


@pytest.mark.parametrize(
    "operator",
    ["LayerNormalization (x, gamma, beta)", "InstanceNormalization (x, gamma, beta)", "Softmax (x)", "Sigmoid (x)"],
)
def test_norms_and_activations_of_one_operator_become_fp16(operator: str) -> None:
    graph = parse(
        f"{HEADER} g (float[batch, 6, 6] x) => (float[batch, 6, 6] y) {{ y = {operator} }}",
        gamma=noise(6, seed=0),
        beta=noise(6, seed=1),
    )
    image = noise(2, 6, 6, scale=300, seed=0)  # squares exceed 65504: the operator computes its statistics in fp32
    result, plan = typed(graph, image)
    assert kept(plan) == []
    assert snr_db(load(graph)({"x": image})["y"], fp16_output(result, image)) > 55


@pytest.mark.parametrize(
    ("body", "operators", "casts"),
    [
        ("a = Exp (x)  b = Transpose (a)  c = Flatten (b)  y = MatMul (c, beyond)", "Exp Transpose Flatten MatMul", 0),
        ("a = Transpose (x)  y = MatMul (a, beyond)", "Transpose MatMul", 0),
        ("a = Exp (x)  y = Transpose (a)", "Exp Transpose", 0),
        ("a = Sub (x, ones)  b = Transpose (a)  y = Exp (b)", "Sub Transpose Exp", 0),
        ("a = Exp (x)  b = Transpose (a)  y = Relu (b)", "Exp", 2),
        ("a = Transpose (x)  y = Relu (a)", "", 2),
    ],
)
def test_data_movement_between_fp32_nodes_stays_in_fp32(body: str, operators: str, casts: int) -> None:
    graph = parse(
        f"{HEADER} g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}",
        beyond=np.diag([1e5, 1, 1, 1]).astype(np.float32),
        ones=np.ones((4, 4), np.float32),
    )
    _, plan = typed(graph, noise(4, 4, scale=1e-2, seed=0))
    assert kept(plan) == operators.split()
    assert plan.casts == casts


def test_an_operator_with_any_input_type_needs_no_cast() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
            a = Exp (x)
            size = Shape (a)
            some = Cast <to = 9> (a)
            b = Reshape (x, size)
            y = Where (some, b, x)
        }}"""
    )
    result, plan = typed(graph, noise(2, 4, seed=0))
    assert kept(plan)[0] == "Exp"
    assert dtypes(result, "Shape") == [["FLOAT"]]
    assert "a_fp16" not in {value.name for node in result.model.graph for value in node.outputs}


def test_custom_operators_stay_in_fp32() -> None:
    graph = parse(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[batch, 4] x) => (float[batch, 4] y) <float[batch, 4] a, float[batch, 4] b> {
            a = Relu (x)
            b = com.microsoft.QuickGelu (a)
            y = Relu (b)
        }"""
    )
    result, plan = typed(graph, noise(2, 4, seed=0))
    assert [(node.operator, node.reason.split(",")[0]) for node in plan.kept] == [
        ("QuickGelu", "a custom operator of domain 'com.microsoft'")
    ]
    assert dtypes(result, "Relu") == [["FLOAT16"], ["FLOAT16"]]


def test_branches_stay_in_fp32_with_their_bodies() -> None:
    graph = parse(
        f"""{HEADER} g (float[batch, 4] x, bool choice) => (float[batch, 4] y) {{
            a = Relu (x)
            b = If (choice) <
                then_branch = g1 () => (float[batch, 4] t) {{ t = Mul (a, w) }},
                else_branch = g2 () => (float[batch, 4] e) {{ e = Neg (a) }}
            >
            y = Add (a, b)
        }}""",
        w=noise(4, seed=0),
    )
    feeds = {"x": noise(2, 4, seed=0), "choice": np.asarray(True)}
    result, plan = to_fp16(graph, [feeds], load=load)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert sorted(kept(plan)) == ["If", "Mul", "Neg"]
    assert dtypes(result, "Add") == [["FLOAT16", "FLOAT16"]]
    assert load(emulate_fp16(result))(feeds)["y"] == pytest.approx(load(graph)(feeds)["y"], rel=2e-3)


# Emulation


def test_emulation_shows_an_overflow_that_onnx_runtime_hides() -> None:
    graph = parse(f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ a = Mul (x, x)  y = Sqrt (a) }}")
    wrong, image = with_all_in_fp16(graph), np.full((1, 4), 300, np.float32)
    assert load(wrong)({"x": image})["y"] == pytest.approx(300)  # 300 * 300 is beyond fp16
    assert np.isinf(fp16_output(wrong, image)).all()


def test_emulation_rounds_like_numpy() -> None:
    graph = parse(
        f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ a = Add (x, w)  y = Mul (a, a) }}",
        w=noise(4, seed=0),
    )
    image = noise(2, 4, seed=1)
    total = image.astype(np.float16) + noise(4, seed=0).astype(np.float16)
    assert np.array_equal(fp16_output(with_all_in_fp16(graph), image), (total * total).astype(np.float32))


# Errors


def test_conversion_needs_calibration_inputs() -> None:
    with pytest.raises(UsageError, match="no calibration inputs"):
        to_fp16(attention(), [], load=load)


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_a_graph_that_fails_in_fp32_is_an_error(worst: float) -> None:
    image = noise(1, 10, 8, seed=0)
    image[0, 0, 0] = worst
    with pytest.raises(ExportError, match="the fp32 model outputs NaN or infinity"):
        to_fp16(attention(), [{"x": image}], load=load)


# Whole models


def test_the_trained_model_keeps_its_accuracy(cifar10: Cifar10) -> None:
    """At most 0.1 points on 2,000 images."""
    captured = capture(
        create_model("shiftvit_cifar10"),
        (torch.from_numpy(cifar10.inputs[:2]),),
        input_names=["x"],
        output_names=["y"],
        dynamic_batch=True,
    )
    graph = check(passes.specialize(passes.optimize(captured.graph), "trt"))
    result, plan = typed(graph, cifar10.inputs[:8])
    assert (kept(plan), plan.casts) == ([], 2)
    run = load(emulate_fp16(check(result)))
    logits = np.concatenate([run({"x": batch})["y"] for batch in np.split(cifar10.inputs, 20)])
    right = logits.argmax(1) == cifar10.labels
    right_in_fp32 = cifar10.logits.argmax(1) == cifar10.labels
    assert right.mean() >= right_in_fp32.mean() - 0.001
    assert (logits.argmax(1) == cifar10.logits.argmax(1)).mean() >= 0.995
    assert snr_db(cifar10.logits, logits) > 40


def mobileformer_blocks(name: str) -> list[str]:
    """Return the modules of Mobile-Former's blocks; none for other models."""
    modules = [path for path, _ in create_model(name).named_modules()]
    return [path.removesuffix(".global_block.q") for path in modules if path.endswith(".global_block.q")]


def written_norms(name: str) -> list[tuple[str, ...]]:
    """Return the modules of each norm whose statistics are nodes for TensorRT.

    They are ShiftViT's norms over (C, H, W), computed from moments, and Mobile-Former's norms in front of queries that
    are computed from the norm's terms.
    """
    modules = dict(create_model(name).named_modules())
    moments = [path for path, module in modules.items() if isinstance(module, torch.nn.GroupNorm)]
    queries = [(f"{path}.local_global.layer_norm", f"{path}.global_block.q") for path in mobileformer_blocks(name)]
    return [*((path,) for path in moments if modules[path].num_groups == 1), *queries]


@functools.cache
def typed_model(name: str) -> tuple[OnnxGraph, PrecisionPlan, tuple[Reference, ...]]:
    """Return a registered model for TensorRT in fp16, its plan and PyTorch's outputs."""
    model = from_name(name)
    captured = capture(model.module, model.example, input_names=model.input_names, output_names=model.output_names)
    graph = check(passes.specialize(passes.optimize(captured.graph), "trt-rtx", precision="fp16"))
    references = compute_references(model, ["logits"])
    photos = references[0].inputs["images"]
    result, plan = to_fp16(graph, [{"images": photos[:1]}, {"images": photos[1:2]}], load=load)
    return check(result), plan, references


# The number of attentions that TensorRT-RTX fuses in each model, and the modules that stay in fp32.
FUSED = {
    "vitae_t": 7,
    "t2t_vit_7": 7,
    "deit_t": 12,
    "swin_xt": 11,
    "shiftvit_t": 0,
    "mobileformer_26m": 17,
    "vitaev2_s": 18,
    "vt_resnet18": 3,
}
PERFORMERS = {
    "vitae_t": ("layers.0.RC.attn", "layers.1.RC.attn"),
    "t2t_vit_7": ("tokens_to_token.attention1", "tokens_to_token.attention2"),
}
models = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.large) for name in FUSED])


@models
def test_models_agree_with_pytorch(name: str) -> None:
    """Only the performers, and the statistics of norms and the products that are written out, stay in fp32."""
    result, plan, references = typed_model(name)
    performers, norms, blocks = PERFORMERS.get(name, ()), written_norms(name), mobileformer_blocks(name)
    attentions = [f"{path}.global_local" for path in blocks]
    layers = [
        f"{path}.proj" for path in (*(f"{path}.local_global" for path in blocks), *["local_global"][: len(blocks)])
    ]
    written = {*attentions, *layers, *(module for norm in norms for module in norm)}
    assert set(plan.modules) - set(performers) == written
    assert set(performers) <= set(plan.modules)
    assert len([node for node in plan.kept if node.name.startswith(performers)]) == 20 * len(performers)
    # Input and output; k, q, v and the quotient; for a norm its input, transposed or not, and its output; of attention
    # to three tokens k, q, three v and the quotient; of a layer its input and its output.
    most = 2 + 4 * len(performers) + 3 * len(norms) + 6 * len(attentions) + 2 * len(layers)
    assert most - len(norms) <= plan.casts <= most
    compare("typed ONNX", load(emulate_fp16(result)), references, precision="fp16").require()


@models
def test_tensorrt_rtx_fuses_the_attention(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    result, _, _ = typed_model(name)
    result.save(tmp_path / "model.onnx")
    compiled = kernels.plan(tmp_path / "model.onnx")
    assert compiled.totals.fused_attentions == FUSED[name]
    assert set(compiled.precisions) == ({"fp16", "fp32"} if name in PERFORMERS else {"fp16"})


def test_the_trained_model_in_the_forms_of_tensorrt(cifar10: Cifar10, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its norms are small enough for one kernel; here they are decomposed like large ones."""
    monkeypatch.setattr(sys.modules["edgevit.export.passes.group_norm_from_moments"], "_MAX_SINGLE_KERNEL", 0)
    captured = capture(
        create_model("shiftvit_cifar10"),
        (torch.from_numpy(cifar10.inputs[:2]),),
        dynamic_batch=True,
        input_names=("x",),
        output_names=("y",),
    ).graph
    graph = check(passes.specialize(passes.optimize(captured), "trt", precision="fp16"))
    assert {"GroupNormalization", "InstanceNormalization"}.isdisjoint(graph.operators)
    assert graph.operators["MatMul"] == 18  # two in each of 9 blocks
    batch, expected = cifar10.inputs[:100], cifar10.logits[:100]
    assert np.abs(load(graph)({"x": batch})["y"] - expected).max() < 1e-4 * expected.std()
    result, _ = typed(graph, batch[:8])
    assert snr_db(expected, load(result)({"x": batch})["y"]) > 50
