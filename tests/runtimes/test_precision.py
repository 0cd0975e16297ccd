"""Executed precision: layers and MACs by precision, compared with known counts and the requested precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import edgevit
from edgevit.bundles.build_records import PrecisionRecord
from edgevit.bundles.bundle import Bundle
from edgevit.cli.export_output import bundle_table
from edgevit.errors import PrecisionError
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.macs import graph_macs
from edgevit.macs import matmul_macs
from edgevit.pipeline.report import BundleReport
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.build import BuildResult
from edgevit.runtimes.precision import ExecutedPrecision, sum_by_precision
from edgevit.runtimes.registry import get_runtime
from tests.helpers.macs import macs
from tests.helpers.onnx_files import save_graph

MOSTLY = ExecutedPrecision({"int8": 20, "fp32": 2}, {"int8": 970, "fp32": 30})
HALF = ExecutedPrecision({"int8": 20, "fp32": 2}, {"int8": 500, "fp32": 500})
LAYERS_ONLY = ExecutedPrecision({"fp16": 3, "fp32": 1})
NOTHING_REPORTED = ExecutedPrecision()


# Fractions


@pytest.mark.parametrize(
    ("executed", "actual", "summary"),
    [
        (MOSTLY, "int8", "int8: 91 % of the layers, 97 % of the MACs"),
        (LAYERS_ONLY, "fp16", "fp16: 75 % of the layers"),
        (NOTHING_REPORTED, "unknown", "not reported"),
        (ExecutedPrecision({"fp32": 4}, {"fp32": 9}), "fp32", "fp32: 100 % of the layers, 100 % of the MACs"),
        (  # most layers are small
            ExecutedPrecision({"int8": 3, "fp32": 1}, {"int8": 1, "fp32": 999}),
            "fp32",
            "int8: 75 % of the layers, less than 1 % of the MACs",
        ),
        (
            ExecutedPrecision({"int8": 999, "fp32": 1}, {"int8": 1, "fp32": 1}),
            "int8",
            "int8: more than 99 % of the layers, 50 % of the MACs",
        ),
        (
            ExecutedPrecision({"int8": 2, "bf16": 2}, {"int8": 3, "bf16": 1}),
            "int8",
            "int8: 50 % of the layers, 75 % of the MACs; bf16: 50 % of the layers, 25 % of the MACs",
        ),
    ],
)
def test_the_summary_gives_fractions(executed: ExecutedPrecision, actual: str, summary: str) -> None:
    assert (executed.actual, executed.summary) == (actual, summary)


def test_fractions_are_of_macs_if_they_are_known() -> None:
    assert (MOSTLY.fraction("int8"), MOSTLY.layer_fraction("int8")) == (0.97, 20 / 22)
    assert (LAYERS_ONLY.fraction("fp16"), LAYERS_ONLY.layer_fraction("int8")) == (0.75, 0)
    assert math.isnan(NOTHING_REPORTED.fraction("int8"))
    assert math.isnan(NOTHING_REPORTED.layer_fraction("int8"))


@pytest.mark.parametrize("count", [None, 0])
def test_one_layer_with_unknown_macs_makes_all_macs_unknown(count: int | None) -> None:
    assert sum_by_precision([("int8", 90), ("fp32", 10)]) == ExecutedPrecision(
        {"int8": 1, "fp32": 1}, {"int8": 90, "fp32": 10}
    )
    assert sum_by_precision([("int8", 90), ("fp32", count)]) == ExecutedPrecision({"int8": 1, "fp32": 1})


@pytest.mark.parametrize(
    ("executed", "requested", "expected", "refused"),
    [
        (MOSTLY, "int8", 1.0, None),
        (MOSTLY, "int8", 0.97, None),
        (HALF, "int8", None, None),
        (HALF, "int8", 0.52, None),
        (HALF, "int8", 0.53, f"for 53 % of the MACs, but ORT runs {HALF.summary}; build for another runtime"),
        (HALF, "int8", 1.0, "int8 for 100 %"),
        (HALF, "int8", 0.0, None),
        (HALF, "int8", math.nan, r"invalid int8 fraction in the manifest \(nan\)"),
        (HALF, "int8", -0.1, r"invalid int8 fraction in the manifest \(-0.1\)"),
        (HALF, "int8", 97.0, r"invalid int8 fraction in the manifest \(97.0\)"),
        (HALF, "fp16", None, "no fp16 arithmetic: export with --precision fp32"),
        (HALF, "fp16", 0.0, "no fp16 arithmetic: export with --precision fp32"),
        (HALF, "fp16", 0.02, "requested fp16 for 2 % of the MACs, but ORT runs"),
        (HALF, "fp32", None, "requested fp32, but ORT runs 20 int8 layers"),
        (ExecutedPrecision({"fp32": 9}, {"fp32": 9}), "fp32", None, None),
        (ExecutedPrecision({"fp32": 9}, {"fp32": 9}), "int8", 0.9, "no int8 arithmetic"),
        # A fraction of the MACs implies nothing about the fraction of layers
        (LAYERS_ONLY, "fp16", 0.99, None),
        (LAYERS_ONLY, "int8", 0.99, "no int8 arithmetic"),
        (NOTHING_REPORTED, "fp16", 0.99, None),
        # Without MACs, a part of the layers must run in the precision, and unknown layers are left out
        (ExecutedPrecision({"int8": 1, "fp32": 79}), "int8", 0.9, "int8: 1 % of the layers"),
        (ExecutedPrecision({"int8": 1, "fp32": 79}), "int8", None, "int8, but ORT runs int8: 1 % of the layers"),
        (ExecutedPrecision({"int8": 1, "fp32": 79}), "int8", 0.0, None),
        (ExecutedPrecision({"int8": 20, "fp32": 60}), "int8", 0.9, None),
        (ExecutedPrecision({"int8": 1, "unknown": 79}), "int8", 0.9, None),
        (ExecutedPrecision({"unknown": 1}), "fp16", 0.9, None),
        (ExecutedPrecision({"unknown": 1, "fp32": 1}), "fp16", 0.9, None),
        (ExecutedPrecision({"unknown": 1, "fp32": 2}), "fp16", 0.9, "no fp16 arithmetic"),
        (ExecutedPrecision({"fp32": 9, "unknown": 2}), "fp32", None, None),
        (ExecutedPrecision({"fp32": 9, "unknown": 2, "tf32": 1}), "fp32", None, "ORT runs 1 tf32 layers"),
        (NOTHING_REPORTED, "fp16", math.nan, r"invalid fp16 fraction in the manifest \(nan\)"),
    ],
)  # fmt: skip
def test_less_than_the_requested_precision_is_status_9(
    executed: ExecutedPrecision, requested: Any, expected: float | None, refused: str | None
) -> None:
    if refused is None:
        executed.require(requested, runtime="ORT", expected=expected)
    else:
        with pytest.raises(PrecisionError, match=refused) as caught:
            executed.require(requested, runtime="ORT", expected=expected)
        assert caught.value.exit_status == 9


@pytest.mark.parametrize(
    ("left", "out", "count"),
    [
        ((49, 64), (49, 256), 49 * 64 * 256),
        ((64, 49), (49, 256), 49 * 64 * 256),  # transposed
        ((2, 3, 49, 16), (2, 3, 49, 49), 2 * 3 * 49 * 16 * 49),
        ((49, 16), (3, 49, 8), 3 * 49 * 16 * 8),
        ((1, 49, 16), (3, 49, 8), 3 * 49 * 16 * 8),
        ((16,), (3, 8), 3 * 16 * 8),
        ((3, 49, 16), (3, 49), 3 * 49 * 16),
        ((16,), (), 16),
        ((7, 5, 16), (5, 7, 8), 7 * 5 * 16 * 8),  # its batch is transposed too
        ((197, 1, 3, 64), (1, 3, 197, 49), 3 * 197 * 64 * 49),
        ((3, 1, 3, 64), (1, 3, 3, 49), 3 * 3 * 64 * 49),  # as many rows as heads
        ((16, 1, 16, 32), (1, 16, 32, 196), 16 * 32 * 16 * 196),  # and both of its matrices
        ((7, 4, 16), (5, 7, 8), None),
        ((7, 5, 16), (5, 9, 8), None),
        ((5, 9, 16), (5, 7, 8), None),
        ((5, 7, 16), (3, 7, 8), None),
        ((), (3,), None),
        ((3, 49, 16), (16,), None),
    ],
)
def test_macs_of_a_matmul_follow_from_its_left_input(left: Any, out: Any, count: int | None) -> None:
    assert matmul_macs(left, out) == count


# Reports of the runtimes


@cache
def graph_of(name: str) -> tuple[Any, int]:
    """Return the optimized graph of a model and its MACs as PyTorch counts them."""
    model = edgevit.create_model(name)
    shape = (1, 3, 32, 32) if name.endswith("cifar10") else (1, 3, 224, 224)
    return passes.optimize(capture(model, (torch.zeros(shape),), dynamic_batch=False).graph), macs(model, shape)


def read_back(fmt: str, model: Path, folder: Path, **options: Any) -> ExecutedPrecision:
    runtime, chosen = get_runtime(fmt), BuildOptions(threads=1, **options)
    with runtime.open(runtime.build(model, folder, chosen).path, chosen) as engine:
        return engine.executed_precision()


@pytest.fixture(params=["ort", "openvino"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", ["shiftvit_cifar10", "deit_t"])
def test_macs_are_those_of_the_engine(name: str, runtime: str, tmp_path: Path) -> None:
    """Including both matmuls of attention, and fewer than the model's in DeiT's last layer."""
    graph, known = graph_of(name)
    lowered = passes.specialize(graph, runtime, precision="fp32", opset=None)
    lowered.save(tmp_path / "graph.onnx")
    executed = read_back(runtime, tmp_path / "graph.onnx", tmp_path)
    assert executed.layers.keys() == executed.macs.keys() == {"fp32"}
    assert graph_macs(graph) == known
    assert executed.macs["fp32"] == graph_macs(lowered)
    assert (executed.macs["fp32"] < known) == (name == "deit_t")


def test_the_manifest_has_macs_for_the_batch_that_ran(shared_bundle: Callable[[str], Bundle], runtime: str) -> None:
    precision = shared_bundle(runtime).manifest.precision.to_json()
    assert precision == {
        "asked": "fp32",
        "found": "fp32",
        "layers": {"fp32": 23},
        "multiply_adds": {"fp32": 2 * graph_of("shiftvit_cifar10")[1]},
        "layer_shares": {"fp32": 1.0},
        "multiply_add_shares": {"fp32": 1.0},
    }


def test_an_engine_that_has_not_run_has_no_precision() -> None:
    entry = PrecisionRecord(requested="fp16", executed=BuildResult(runtime=get_runtime("trt")).precision).to_json()
    counts: dict[str, Any] = {"layers": {}, "multiply_adds": {}, "layer_shares": {}, "multiply_add_shares": {}}
    assert entry == {"asked": "fp16", "found": None, **counts}


# Graphs with known MACs

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
QUANTIZED_INPUT = "i = QuantizeLinear(x, s, z) d = DequantizeLinear(i, s, z)"
SCALES = "float s = {0.02}, uint8 z = {128}, int8 zero = {0}"


@pytest.mark.parametrize(
    ("text", "by_ort", "by_openvino"),
    [
        (  # groups and strides
            """g (float[1, 8, 9, 9] x, float[6, 4, 3, 3] w) => (float[1, 6, 4, 4] y)
             { y = Conv <group = 2, strides = [2, 2]> (x, w) }""",
            {"fp32": 6 * 4 * 4 * 4 * 9},
            {"fp32": 6 * 4 * 4 * 4 * 9},
        ),
        (  # transposed: not in ONNX Runtime's profile
            """g (float[1, 8, 5, 5] x, float[8, 6, 2, 2] w) => (float[1, 6, 10, 10] y)
             { y = ConvTranspose <strides = [2, 2]> (x, w) }""",
            {},
            {"fp32": 8 * 5 * 5 * 6 * 4},
        ),
        (
            "g (float[16, 7] x, float[5, 16] w) => (float[7, 5] y) { y = Gemm <transA = 1, transB = 1> (x, w) }",
            {"fp32": 7 * 16 * 5},
            {"fp32": 7 * 16 * 5},
        ),
        (  # one side is shared by the batch
            "g (float[7, 16] x, float[3, 16, 5] w) => (float[3, 7, 5] y) { y = MatMul(x, w) }",
            {"fp32": 3 * 7 * 16 * 5},
            {"fp32": 3 * 7 * 16 * 5},
        ),
        (
            """g (float[1, 7, 16] x, float[16, 5] w, float[7, 1] v) => (float[1, 1, 5] y)
             { a = MatMul(x, w) t = Transpose <perm = [0, 2, 1]> (a) b = MatMul(t, v)
             y = Transpose <perm = [0, 2, 1]> (b) }""",
            {"fp32": 7 * 16 * 5 + 5 * 7},
            {"fp32": 7 * 16 * 5 + 5 * 7},
        ),
        (  # never guessed
            "g (float[7, 16] x, float[16, 5] w) => (float[7, 5] y) { y = Einsum <equation = \"ik,kj->ij\"> (x, w) }",
            {},
            {},
        ),
        (  # one after another
            """g (float[1, 128] x, float[32, 128] w, float[32] b, float[72, 32] v, float[72] c) => (float[1, 72] y)
             { h = Gemm <transB = 1> (x, w, b) r = Relu(h) y = Gemm <transB = 1> (r, v, c) }""",
            {"fp32": 128 * 32 + 32 * 72},
            {"fp32": 128 * 32 + 32 * 72},
        ),
        (  # fused attention, heads apart: 2 products of 3 heads
            """g (float[1, 3, 7, 8] x, float[1, 3, 5, 8] k, float[1, 3, 5, 4] v) => (float[1, 3, 7, 4] y)
             { t = Transpose <perm = [0, 1, 3, 2]> (k) a = MatMul(x, t) p = Softmax <axis = -1> (a)
             y = MatMul(p, v) }""",
            {"fp32": 3 * 7 * 5 * (8 + 4)},
            {"fp32": 3 * 7 * 5 * (8 + 4)},
        ),
        (
            """g (float[1, 7, 24] x, float[1, 5, 24] k, float[1, 5, 12] v) => (float[1, 7, 12] y)
             { y = com.microsoft.MultiHeadAttention <num_heads = 3> (x, k, v) }""",
            {"fp32": 7 * 5 * (24 + 12)},
            None,
        ),
        (  # both inputs are quantized
            f"""g (float[7, 16] x) => (float[7, 2] y) <{SCALES}, int8[16, 2] w = {{{', '.join(['3'] * 32)}}}>
             {{ {QUANTIZED_INPUT} e = DequantizeLinear(w, s, zero) y = MatMul(d, e) }}""",
            {"int8": 7 * 16 * 2},
            {"int8": 7 * 16 * 2},
        ),
        (  # ONNX Runtime does not fuse Q and DQ into this convolution, which multiplies floats
            f"""g (float[1, 2, 8, 8] x) => (float[1, 2, 8, 8] y) <{SCALES}, int8[2, 2, 1, 1] w = {{1, 2, 3, 4}}>
             {{ {QUANTIZED_INPUT} e = DequantizeLinear(w, s, zero) y = Conv(d, e) }}""",
            {"fp32": 2 * 64 * 2},
            {"int8": 2 * 64 * 2},
        ),
    ],
)  # fmt: skip
def test_known_macs_are_counted(
    text: str, by_ort: dict[str, int], by_openvino: dict[str, int] | None, tmp_path: Path
) -> None:
    onnx.save(onnx.parser.parse_model(f"{HEAD}\n{text}"), tmp_path / "graph.onnx")
    executed = read_back("ort", tmp_path / "graph.onnx", tmp_path, precision="int8")
    assert executed.macs == by_ort
    assert executed.layers
    if by_openvino is not None:
        executed = read_back("openvino", tmp_path / "graph.onnx", tmp_path, precision="int8")
        assert executed.macs == by_openvino
        assert executed.layers


def conv_net(folder: Path) -> Path:
    return save_graph(
        folder / "conv.onnx",
        "g (float[1, 3, 32, 32] x) => (float[1, 10] y)",
        {
            "stem": "a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w0)",
            "stem_act": "b = Relu(a)",
            "depthwise": "c = Conv <group = 32, pads = [1, 1, 1, 1]> (b, w1)",
            "depthwise_act": "d = Relu(c)",
            "point": "e = Conv(d, w2)",
            "point_act": "f = Relu(e)",
            "pool": "p = GlobalAveragePool(f)",
            "flatten": "q = Flatten(p)",
            "head": "y = Gemm <transB = 1> (q, w3, b3)",
        },
        {"w0": (32, 3, 3, 3), "w1": (32, 1, 3, 3), "w2": (64, 32, 1, 1), "w3": (10, 64), "b3": (10,)},
    )


POINT, CONVS = 64 * 32 * 16 * 16, (32 * 27 + 32 * 9 + 64 * 32) * 16 * 16 + 640


def transformer_block(folder: Path) -> Path:
    """49 tokens of 64 in 4 heads, and an MLP of 256."""
    return save_graph(
        folder / "block.onnx",
        "g (float[1, 49, 64] x) => (float[1, 49, 64] y)"
        "<int64[4] heads = {1, 49, 4, 16}, int64[3] flat = {1, 49, 64}, float scale = {0.25}>",
        {
            "q": "q = MatMul(x, wq)",
            "k": "k = MatMul(x, wk)",
            "v": "v = MatMul(x, wv)",
            "q_heads": "q4 = Reshape(q, heads)",
            "k_heads": "k4 = Reshape(k, heads)",
            "v_heads": "v4 = Reshape(v, heads)",
            "q_first": "qt = Transpose <perm = [0, 2, 1, 3]> (q4)",
            "k_first": "kt = Transpose <perm = [0, 2, 3, 1]> (k4)",
            "v_first": "vt = Transpose <perm = [0, 2, 1, 3]> (v4)",
            "scale": "qs = Mul(qt, scale)",
            "scores": "s = MatMul(qs, kt)",
            "softmax": "p = Softmax <axis = -1> (s)",
            "mix": "o = MatMul(p, vt)",
            "heads_last": "ot = Transpose <perm = [0, 2, 1, 3]> (o)",
            "join": "of = Reshape(ot, flat)",
            "proj": "pr = MatMul(of, wo)",
            "add": "h = Add(x, pr)",
            "fc1": "f1 = MatMul(h, w1)",
            "bias": "f1b = Add(f1, b1)",
            "act": "g1 = Relu(f1b)",
            "fc2": "f2 = MatMul(g1, w2)",
            "out": "y = Add(h, f2)",
        },
        {
            "wq": (64, 64),
            "wk": (64, 64),
            "wv": (64, 64),
            "wo": (64, 64),
            "w1": (64, 256),
            "b1": (256,),
            "w2": (256, 64),
        },
    )


ATTENTION, FC1, BLOCK = 2 * 49 * 49 * 64, 49 * 64 * 256, 49 * 64 * (4 * 64 + 2 * 256) + 2 * 49 * 49 * 64


class Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = np.random.default_rng(0)
        self._feeds: Iterator[dict[str, Any]] = iter(
            [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantized(
    source: Path,
    shape: tuple[int, ...],
    *,
    without: tuple[str, ...] = (),
    operators: tuple[str, ...] | None = None,
    symmetric: bool = False,
) -> Path:
    """Quantize all nodes of the given `operators`, or of all operators, except the nodes `without`."""
    target = source.with_name("quantized.onnx")
    quantize_static(
        source,
        target,
        Noise(shape),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=operators,
        nodes_to_exclude=list(without),
        extra_options={"ActivationSymmetric": symmetric},
    )
    return target


@pytest.mark.parametrize(
    ("without", "layers", "counts"),
    [
        ((), {"int8": 4}, {"int8": CONVS}),
        # By default ONNX Runtime would quantize it too, since its neighbors are quantized
        (("point",), {"int8": 3, "fp32": 1}, {"int8": CONVS - POINT, "fp32": POINT}),
    ],
)
def test_quantized_convolutions_run_in_int8(
    without: tuple[str, ...], layers: dict[str, int], counts: dict[str, int], runtime: str, tmp_path: Path
) -> None:
    model = quantized(conv_net(tmp_path), (1, 3, 32, 32), without=without)
    executed = read_back(runtime, model, tmp_path, precision="int8")
    assert (executed.layers, executed.macs) == (layers, counts)
    executed.require("int8", runtime=runtime, expected=counts["int8"] / CONVS)
    if without:
        with pytest.raises(PrecisionError, match="100 % of the MACs, but"):
            executed.require("int8", runtime=runtime, expected=1.0)


@pytest.mark.parametrize(
    ("without", "in_fp32"), [(("scores", "mix"), ATTENTION), (("scores", "mix", "fc1"), ATTENTION + FC1)]
)
def test_quantized_matmuls_run_in_int8(without: tuple[str, ...], in_fp32: int, runtime: str, tmp_path: Path) -> None:
    model = quantized(transformer_block(tmp_path), (1, 49, 64), without=without, operators=("MatMul",))
    executed = read_back(runtime, model, tmp_path, precision="int8")
    assert executed.layers["int8"] == 6 - ("fc1" in without)
    assert executed.macs == {"int8": BLOCK - in_fp32, "fp32": in_fp32}
    executed.require("int8", runtime=runtime, expected=1 - in_fp32 / BLOCK)


def test_a_model_from_the_cache_has_the_same_macs(tmp_path: Path) -> None:
    """OpenVINO's cache does not keep the names of fused operators."""
    runtime, options = get_runtime("openvino"), BuildOptions(threads=1, cache_dir=tmp_path / "cache")
    model = runtime.build(transformer_block(tmp_path), tmp_path, options).path
    for _ in range(2):
        with runtime.open(model, options) as engine:
            assert engine.executed_precision().macs == {"fp32": BLOCK}
    assert len(list((tmp_path / "cache").glob("*.blob"))) == 1


def test_a_layer_of_several_matmuls_is_int8_only_if_all_are(tmp_path: Path) -> None:
    """OpenVINO reports int8 for attention in which only the values are int8; queries and keys are fp32."""
    model = quantized(transformer_block(tmp_path), (1, 49, 64), without=("scores", "q", "k"), symmetric=True)
    executed = read_back("openvino", model, tmp_path, precision="int8")
    linear = 49 * 64 * 64
    assert executed.macs["fp32"] >= 2 * linear + ATTENTION // 2
    assert sum(executed.macs.values()) == BLOCK


def test_dynamic_quantization_is_int8(tmp_path: Path) -> None:
    quantize_dynamic(transformer_block(tmp_path), tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8)
    executed = read_back("ort", tmp_path / "dynamic.onnx", tmp_path, precision="int8")
    assert executed.macs == {"int8": BLOCK - ATTENTION, "fp32": ATTENTION}


# Runtimes and reports


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", True), ("int8", True), ("fp16", False)])
def test_the_processor_runs_int8_and_not_fp16(runtime: str, precision: Any, *, allowed: bool) -> None:
    if allowed:
        get_runtime(runtime).require_precision(precision)
    else:
        with pytest.raises(PrecisionError, match="does not run fp16 here; it runs fp32, (bf16, )?int8"):
            get_runtime(runtime).require_precision(precision)


@pytest.mark.parametrize(
    ("requested", "executed", "cell"),
    [
        ("int8", MOSTLY, MOSTLY.summary),
        ("fp16", LAYERS_ONLY, LAYERS_ONLY.summary),
        ("fp32", ExecutedPrecision({"fp32": 23}, {"fp32": 5}), "23 fp32"),
        ("int8", None, "not reported"),
        ("fp32", None, "not reported"),
    ],
)
def test_the_report_shows_the_summary(requested: Any, executed: ExecutedPrecision | None, cell: str) -> None:
    made = BundleReport(
        path=Path("vit"), fmt="ort", title="ORT", requested_precision=requested, actual_precision=executed, nodes=1,
        opset=20, size_bytes=1, missing=None, comparison=None, notes=(),
    )  # fmt: skip
    assert list(bundle_table([made]).columns[-1].cells) == [cell]
