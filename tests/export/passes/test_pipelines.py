"""Pass pipelines of formats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgevit import cpu
from edgevit.errors import ExportError
from edgevit.export import passes
from edgevit.export.passes import specialize
from edgevit.export.passes.fuse_affine import fuse_affine
from edgevit.types import Precision
from tests.helpers.graphs import HEADER, assert_same, noise, parse

NORM = f"""{HEADER} g (float[N, 4, 64, 64] x) => (float[N, 4, 64, 64] y) <float[N, 4, 64, 64] n> {{
    a = Relu (x)
    n = GroupNormalization <num_groups = 1, epsilon = 0.01> (a, scale, bias)
    y = Conv (n, w)
}}"""
ATTENTION = f"""{HEADER} g (float[N, 9, 16] a, float[N, 16, 10] b, float[N, 12, 9] v) => (float[N, 12, 10] y) {{
    s = MatMul (a, b)
    w = Softmax <axis = -2> (s)
    y = MatMul (v, w)
}}"""


@pytest.mark.parametrize(
    ("target", "precision", "norms", "products"),
    [
        ("trt", "fp32", 0, 1),
        ("trt-rtx", "fp16", 0, 1),
        ("trt", "int8", 0, 0),  # inputs of int8 layers stay as they were calibrated
        ("ort", "fp32", 1, 0),
        ("onnx", "fp16", 1, 0),
    ],
)
def test_tensorrt_gets_moments_and_matmuls_except_in_int8(
    target: str, precision: Precision, norms: int, products: int
) -> None:
    before = parse(NORM, scale=noise(4, offset=1), bias=noise(4, seed=2), w=noise(4, 4, 1, 1))
    after = specialize(before.apply("fuse_affine", fuse_affine), target, precision=precision)
    assert after.operators["InstanceNormalization"] == norms
    assert after.operators["MatMul"] == products


@pytest.mark.parametrize(
    ("target", "precision", "is_transposed"), [("trt", "fp16", 1), ("trt", "fp32", 0), ("ort", "fp16", 0)]
)
def test_attention_is_canonicalized_for_tensorrt_in_fp16(target: str, precision: Precision, is_transposed: int) -> None:
    before = parse(ATTENTION)
    assert specialize(before, target, precision=precision).operators["Transpose"] == 4 * is_transposed


@pytest.mark.parametrize(
    ("target", "precision", "layers"),
    [("trt", "fp32", 1), ("trt-rtx", "fp16", 1), ("trt", "int8", 2), ("ort", "fp32", 1)],
)
def test_layers_of_few_rows_are_merged_except_in_int8_for_tensorrt(
    target: str, precision: Precision, layers: int
) -> None:
    text = "q = MatMul (x, w) k = MatMul (x, v) y = Concat <axis = -1> (k, q)"
    before = parse(f"{HEADER} g (float[N, 3, 8] x) => (y) {{ {text} }}", w=noise(8, 4), v=noise(8, 5, seed=2))
    assert specialize(before, target, precision=precision).operators["MatMul"] == layers


@pytest.mark.parametrize(
    ("flags", "precision", "layers"),
    [
        ("avx2 avx512f amx_bf16", "fp32", 1),
        ("avx2 avx512f amx_bf16", "bf16", 1),
        ("avx2 avx512f amx_bf16", "int8", 2),
        ("avx2 avx512f", "fp32", 1),
        ("avx2 avx512f avx512_bf16", "bf16", 2),
        ("avx2", "fp32", 2),
    ],
)
def test_layers_of_few_rows_are_merged_for_openvino_with_avx512_or_amx(
    flags: str, precision: Precision, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    text = "q = MatMul (x, w) k = MatMul (x, v) y = Concat <axis = -1> (k, q)"
    before = parse(f"{HEADER} g (float[N, 3, 8] x) => (y) {{ {text} }}", w=noise(8, 4), v=noise(8, 5, seed=2))
    assert specialize(before, "openvino", precision=precision).operators["MatMul"] == layers


def test_passes_are_recorded_with_their_options() -> None:
    graph = specialize(parse(NORM, scale=noise(4, offset=1), bias=noise(4), w=noise(4, 4, 1, 1)), "onnx", opset=17)
    names = [record.name for record in graph.history]
    decomposed = ["decompose_group_norm", "decompose_gelu", "decompose_wrap_pad", "decompose_mish"]
    faster = [
        "fold_scale",
        "fold_layer_scale(smallest=1e-30, largest=1e+30)",
        "hard_sigmoid_to_clip",
        "project_tokens",
        "expand_depthwise",
        "merge_linear",
        "underflow_masks",
        "gather_rows",
    ]
    assert names == [*faster, *decomposed, "downgrade_opset(opset=17)"]


def test_a_pass_needs_one_line_in_a_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    def relu_to_tanh(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Tanh"

    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, relu_to_tanh))
    graph = passes.optimize(parse(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ y = Relu (x) }}"))
    assert dict(graph.operators) == {"Tanh": 1}
    assert graph.history[-1].name == "relu_to_tanh"


GRID_SAMPLE = f"""{HEADER} g (float[N, 2, 5, 5] x, float[N, 3, 4, 2] grid) => (float[N, 2, 3, 4] y) {{
    y = GridSample <mode = "%s"> (x, grid)
}}"""


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize(
    ("target", "opset"), [("onnx", 18), ("ort", 20), ("openvino", 21), ("trt", 19), ("trt-rtx", 19)]
)
def test_grid_sample_is_written_as_the_runtime_reads_it(target: str, opset: int, mode: str) -> None:
    before = parse(GRID_SAMPLE % mode)
    after = specialize(before, target)
    assert after.opset == opset
    assert_same(before, after)


def test_grid_sample_that_tensorrt_misreads_is_rejected() -> None:
    with pytest.raises(ExportError, match="misreads GridSample of opset 20; use --opset 19"):
        specialize(parse(GRID_SAMPLE % "linear"), "trt", opset=20)
    assert specialize(parse(GRID_SAMPLE % "linear"), "trt", opset=17).opset == 17


def test_a_graph_that_needs_a_newer_opset_gets_it() -> None:
    text = (GRID_SAMPLE % "linear").replace("5, 5]", "5, 5, 5]").replace("3, 4, 2]", "3, 4, 4, 3]")
    graph = parse(text.replace("3, 4] y", "3, 4, 4] y"))
    assert specialize(graph, "onnx").opset == 20
    with pytest.raises(ExportError, match="needs opset 20"):
        specialize(graph, "onnx", opset=18)
    with pytest.raises(ExportError, match="needs opset 20"):
        specialize(graph, "trt")


@pytest.mark.parametrize("opset", [17, 18])
def test_circular_padding_and_mish_are_written_in_older_opsets(opset: int) -> None:
    before = parse(
        f"""{HEADER} g (float[N, 2, 5, 5] x) => (float[N, 2, 7, 7] y) {{
            a = Mish (x)
            y = Pad <mode = "wrap"> (a, pads)
        }}""",
        pads=np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
    )
    assert_same(before, specialize(before, "onnx", opset=opset))


@pytest.mark.parametrize("target", ["onnx", "ort", "openvino", "trt"])
def test_nodes_without_inputs_are_passed_over(target: str) -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4] x) => (float[N, 8] y) {{
            empty = SequenceEmpty ()
            first = SequenceInsert (empty, x)
            both = SequenceInsert (first, x)
            y = ConcatFromSequence <axis = 1> (both)
        }}"""
    )
    after = specialize(passes.optimize(before), target, precision="fp32")
    assert after.operators["SequenceEmpty"] == 1
