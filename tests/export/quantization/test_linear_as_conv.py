"""int8 linear layers as 1x1 convolutions: the same numbers; other layers stay."""

from __future__ import annotations

import numpy as np
import openvino
import pytest

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import ValueRange
from edgevit.export.quantization.int8 import quantize
from edgevit.export.quantization.linear_as_conv import faster_ranks, linear_as_conv
from edgevit.formats import Int8Scheme
from edgevit.types import Array
from tests.helpers.graphs import assert_same, noise
from tests.helpers.quantization import checked_graph

SCHEME = Int8Scheme(activations="uint8")
WEIGHTS = {"w": noise(6, 10), "b": noise(10, seed=2), "one": noise(1, seed=3)}


def int8_graph(shape: str, body: str, outputs: str) -> OnnxGraph:
    """Return a graph whose MatMul `a` of `x` is in int8."""
    graph = checked_graph(f"(float[{shape}, 6] x) => ({outputs}) {{ {body} }}", **WEIGHTS)
    ranges = {"x": ValueRange((-3.0,), (4.0,))}
    return check(
        quantize(
            graph, [str(node.name) for node in graph.model.graph if node.op_type == "MatMul"], ranges, scheme=SCHEME
        )
    )


def rewritten(graph: OnnxGraph) -> OnnxGraph:
    return check(graph.apply("linear_as_conv", lambda model: linear_as_conv(model, ranks=(3, 4))))


@pytest.mark.parametrize("shape", ["N, 9", "2, 9", "N, 3, 4", "2, 3, 4"])
@pytest.mark.parametrize("add", ["Add (a, b)", "Add (b, a)"])
def test_a_layer_and_its_bias_become_one_convolution(shape: str, add: str) -> None:
    before = int8_graph(shape, f"a = MatMul (x, w)  y = {add}", f"float[{shape}, 10] y")
    after = rewritten(before)
    assert (after.operators["Conv"], after.operators["MatMul"], after.operators["Add"]) == (1, 0, 0)
    assert_same(before, after)


def test_the_kernel_keeps_the_integers_and_their_scales() -> None:
    before = int8_graph("N, 9", "y = MatMul (x, w)", "float[N, 9, 10] y")
    after = rewritten(before)
    (matrix,) = [array for array in _int8_weights(before) if array.ndim == 2]
    (kernel,) = [array for array in _int8_weights(after) if array.ndim == 3]
    np.testing.assert_array_equal(kernel[:, :, 0], matrix.T)
    assert_same(before, after)


def _int8_weights(graph: OnnxGraph) -> list[Array]:
    tensors = [value.const_value for value in graph.model.graph.initializers.values()]
    arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]


@pytest.mark.parametrize("body", ["a = MatMul (x, w)  y = Add (a, one)", "a = MatMul (x, w)  y = Relu (a)"])
def test_only_a_bias_for_each_output_is_part_of_the_convolution(body: str) -> None:
    before = int8_graph("N, 9", body, "float[N, 9, 10] y")
    after = rewritten(before)
    assert after.operators["Conv"] == 1
    assert after.operators["Add"] == before.operators["Add"]
    assert_same(before, after)


def test_a_product_with_other_readers_keeps_its_bias_apart() -> None:
    before = int8_graph(
        "N, 9", "a = MatMul (x, w)  y = Add (a, b)  z = Relu (a)", "float[N, 9, 10] y, float[N, 9, 10] z"
    )
    after = rewritten(before)
    assert (after.operators["Conv"], after.operators["Add"]) == (1, 1)
    assert_same(before, after)


@pytest.mark.parametrize("shape", ["N", "N, 7", "N, 2, 2, 3", "N, T"])
def test_few_rows_and_other_shapes_stay(shape: str) -> None:
    before = int8_graph(shape, "y = MatMul (x, w)", f"float[{shape}, 10] y")
    assert rewritten(before).operators == before.operators


@pytest.mark.parametrize("shape", ["1, 9", "2, 16", "1, 3, 4"])
def test_openvino_moves_no_data_around_the_convolution(shape: str) -> None:
    readers = "p, q = Split <axis = -1, num_outputs = 2> (c)  y = Concat <axis = -1> (q, p)"
    graph = rewritten(int8_graph(shape, f"a = MatMul (x, w)  c = Add (a, b)  {readers}", f"float[{shape}, 10] y"))
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph.to_bytes()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [layer["layerType"].astype(str) for layer in layers]
    assert kinds.count("Convolution") == 1
    assert "Transpose" not in kinds
    moving = [layer["primitiveType"].astype(str) for layer in layers if layer["layerType"].astype(str) == "Reorder"]
    assert {kind.rpartition("_")[0] for kind in moving} == {"reorder"}  # of memory that is used as it is


@pytest.mark.parametrize(("shape", "rank"), [("N, 9", 4), ("N, 3, 4", 3)])
def test_layers_on_tensors_of_other_ranks_stay(shape: str, rank: int) -> None:
    before = int8_graph(shape, "y = MatMul (x, w)", f"float[{shape}, 10] y")
    after = check(before.apply("linear_as_conv", lambda model: linear_as_conv(model, ranks={rank})))
    assert after.operators == before.operators


@pytest.mark.parametrize(
    ("flags", "architecture", "ranks"),
    [
        ("avx2", "x86_64", {3, 4}),
        ("avx2 avx_vnni", "x86_64", set()),
        ("avx2 avx512f", "x86_64", {4}),
        ("avx2 avx512f avx512_vnni amx_int8", "x86_64", {4}),
        ("asimd asimddp", "aarch64", set()),
    ],
)
def test_tokens_and_maps_are_convolved_where_that_is_faster(
    flags: str, architecture: str, ranks: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.cpu.cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr("platform.machine", lambda: architecture)
    assert faster_ranks() == ranks


def test_a_layer_in_float_stays() -> None:
    before = checked_graph("(float[N, 9, 6] x) => (float[N, 9, 10] y) { y = MatMul (x, w) }", **WEIGHTS)
    assert rewritten(before).operators == before.operators
