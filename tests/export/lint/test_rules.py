"""Each lint rule on a minimal graph that violates it and on a similar graph that does not."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from numpy.typing import ArrayLike
from rich.console import Console
from torch import nn

from edgevit.cli.lint import lint_json, lint_parts, lint_summary
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.findings import Finding, has_errors
from edgevit.export.lint.rules import RULES, lint
from edgevit.export.lint.targets import parse_target
from edgevit.models import loading
from edgevit.types import Array

HALF = np.dtype(np.float16)
NO_WEIGHTS: Mapping[str, ArrayLike] = {}


def graph(body: str, weights: Mapping[str, ArrayLike] = NO_WEIGHTS, *, opset: int = 20, domains: str = "") -> OnnxGraph:
    """Parse a graph as another tool might have written it: shapes only of inputs and outputs."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {body}'
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return OnnxGraph(ir.from_proto(model))


@dataclass(frozen=True)
class Case:
    """A rule, the level of its finding, a graph that violates it, and one that does not."""

    rule: str
    level: str
    violating: str
    clean: str
    target: str = "trt"
    opset: int = 20
    clean_opset: int | None = None
    domains: str = ""
    weights: Mapping[str, ArrayLike] = field(default_factory=dict)
    clean_weights: Mapping[str, ArrayLike] | None = None

    def __str__(self) -> str:
        return f"{self.rule}-{self.target}-{self.level}"


def weight(*shape: int, scale: float = 0.1) -> Array:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def attention(dtype: str, head: int) -> str:
    """Attention of 4 heads on 16 tokens; the keys are transposed."""
    size = f"{dtype}[batch, 4, 16, {head}]"
    return f"""({size} q, {dtype}[batch, 4, {head}, 16] k, {size} v) => ({size} y) {{
        scores = MatMul (q, k)
        scaled = Mul (scores, scale)
        weights = Softmax <axis = -1> (scaled)
        y = MatMul (weights, v)
    }}"""


def einsum_attention(dtype: str, head: int, scores: str = "bihd,bjhd->bhij") -> str:
    """Attention of 4 heads on 16 tokens, written with Einsum."""
    size = f"{dtype}[batch, 16, 4, {head}]"
    return f"""({size} q, {size} k, {size} v) => ({size} y) {{
        scores = Einsum <equation = "{scores}"> (q, k)
        scaled = Mul (scores, scale)
        weights = Softmax <axis = -1> (scaled)
        y = Einsum <equation = "bhij,bjhd->bihd"> (weights, v)
    }}"""


LAYER_NORM = """(float[batch, 8, 4, 4] x) => (float[batch, 8, 4, 4] y) {{
    mean = ReduceMean <keepdims = 1> (x, axes)
    centered = Sub (x, mean)
    squared = {square}
    variance = ReduceMean <keepdims = 1> (squared, axes)
    sum = Add (variance, epsilon)
    deviation = Sqrt (sum)
    y = Div (centered, deviation)
}}"""
LAYER_NORM_OP = """(float[batch, 8, 4, 4] x) => (float[batch, 8, 4, 4] y) {
    last = Transpose <perm = [0, 2, 3, 1]> (x)
    normed = LayerNormalization <axis = -1> (last, gain)
    y = Transpose <perm = [0, 3, 1, 2]> (normed)
}"""
SOFTMAX_17 = "(float[batch, 8] x) => (float[batch, 8] y) { y = Softmax (x) }"
RELU = "(float[batch, 8] x) => (float[batch, 8] y) { y = Relu (x) }"
GROUP_NORM = (
    "(float[batch, 8, 4, 4] x) => (float[batch, 8, 4, 4] y) { y = GroupNormalization <num_groups = 2> (x, s, b) }"
)
GRID_SAMPLE = """(float[batch, 2, 5, 5] x, float[batch, 3, 4, 2] g) => (float[batch, 2, 3, 4] y) {
    y = GridSample (x, g)
}"""
PER_CHANNEL: Mapping[str, ArrayLike] = {"s": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
PER_GROUP: Mapping[str, ArrayLike] = {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
CONV = "(float[batch, 2, 4, 4] x) => (float[batch, 3, 4, 4] y) { y = Conv (x, w) }"
ADD = "(float[batch, 4] x) => (float[batch, 4] y) { y = Add (x, c) }"
QUANTIZE = """(float[batch, 4] x) => (float[batch, 4] y) {
    q = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (q, scale, zero)
}"""
PAD = "(float[batch, 4] x) => (float[batch, 6] y) {{ y = Pad (x, pads{rest}) }}"
SCALE, AXES = np.float32(0.25), np.array([1], np.int64)


def dense_attention(tokens: int, dtype: str = "float", head: int = 32) -> str:
    """Attention of 4 heads on a number of tokens."""
    return attention(dtype, head).replace("16,", f"{tokens},").replace(", 16]", f", {tokens}]")


def image_norm(norm: str, *, side: int = 32, out: str = "batch, 8, 32, 32") -> str:
    """A norm on a square map whose result is an output."""
    return f"(float[batch, 8, {side}, {side}] x) => (float[{out}] y) {{ {norm} }}"


def pooling_windows() -> Array:
    """Return the indices with which exporters write adaptive pooling of 4 x 4 to 3 x 3."""
    starts = np.array([[0, 1], [1, 2], [2, 3]])
    rows, columns = np.broadcast_arrays(starts[:, :, None, None], starts[None, None])
    return np.stack([rows, columns], -1)


GROUP_NORM_OP = "y = GroupNormalization <num_groups = 2> (x, s, b)"
MEAN_OF_MAP = """mean = ReduceMean <keepdims = 1> (x, axes)
    y = Sub (x, mean)"""
SQUEEZE_AND_EXCITE = """mean = ReduceMean <keepdims = 1> (x, axes)
    gate = Sigmoid (mean)
    y = Mul (x, gate)"""
WHOLE_LAYER_NORM = "y = LayerNormalization <axis = {axis}> (x, gain)"
FOLDED_NORM = """folded = Reshape (x, groups)
    normed = InstanceNormalization (folded, s, b)
    y = Reshape (normed, unfolded)"""
FOLDED: Mapping[str, ArrayLike] = {
    **PER_GROUP,
    "groups": np.array([-1, 2, 4096], np.int64),
    "unfolded": np.array([-1, 8, 32, 32], np.int64),
}
POOLING = """(float[batch, 2, 4, 4] x) => (float[3, 3, batch, 2] y) {{
    last = Transpose <perm = [2, 3, 0, 1]> (x)
    windows = GatherND (last, index)
    {pooled}
}}"""
SUMMED = """sums = ReduceSum <keepdims = 0> (windows, window)
    y = Mul (sums, quarter)"""
WEIGHTED = """weighted = Relu (windows)
    y = Einsum <equation = "abcdef,bd->acef"> (weighted, kernel)"""
RESIZE = """(float[batch, 3, 8, 8] x) => (float[batch, 3, 32, 32] y) {{
    y = Resize <mode = "{mode}", coordinate_transformation_mode = "{coordinates}"> (x, roi, scales)
}}"""
RESIZE_10 = """(float[batch, 3, 8, 8] x) => (float[batch, 3, 32, 32] y) {
    y = Resize <mode = "linear"> (x, scales)
}"""
RESIZED_CLASSES = """(float[batch, 3, 8, 8] x) => (float[batch, 1, 32, 32] y) {
    best = ArgMax <axis = 1, keepdims = 1> (x)
    classes = Cast <to = 1> (best)
    y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (classes, roi, scales)
}"""
RESIZED_LOGITS = """(float[batch, 3, 8, 8] x) => (int32[batch, 32, 32] y) {
    resized = Resize <mode = "linear"> (x, roi, scales)
    best = ArgMax <axis = 1, keepdims = 0> (resized)
    y = Cast <to = 6> (best)
}"""
TIMES_4: Mapping[str, ArrayLike] = {"scales": np.array([1, 1, 4, 4], np.float32), "roi": np.zeros(0, np.float32)}

CASES = (
    Case(
        "operators",
        "error",
        "(float[batch, 8] x) => (float[batch, 8] y) { y = Gelu (x) }",
        SOFTMAX_17,
        target="trt:8.6",
        clean_opset=17,
    ),
    Case("operators", "error", "(float[batch, 4, 4] x) => (float[batch] y) { y = Det (x) }", RELU),
    Case(
        "operators",
        "error",
        "(float[batch, 8] x) => (float[batch, 8] y) { y = acme.Fused (x) }",
        RELU,
        domains=', "acme" : 1',
    ),
    Case(
        "operators",
        "warning",
        "(float[batch, 8] x) => (float[batch, 8] y) { y = com.microsoft.Gelu (x) }",
        RELU,
        domains=', "com.microsoft" : 1',
    ),
    Case("operators", "error", "(float[batch, 4, 4] x) => (float[batch] y) { y = Det (x) }", RELU, target="openvino"),
    Case(
        "operators",
        "error",
        "(float[batch, 8] x) => (float[batch, 8] y) { y = acme.Fused (x) }",
        RELU,
        target="ort",
        domains=', "acme" : 1',
    ),
    Case(
        "operator-forms",
        "error",
        GROUP_NORM,
        GROUP_NORM,
        opset=21,
        clean_opset=20,
        weights=PER_CHANNEL,
        clean_weights=PER_GROUP,
    ),
    Case(
        "operator-forms",
        "error",
        GROUP_NORM.replace("num_groups = 2", "num_groups = 1"),
        GROUP_NORM,
        target="trt:11.4",
        weights={"s": np.ones(1, np.float32), "b": np.zeros(1, np.float32)},
        clean_weights=PER_GROUP,
    ),
    Case(
        "operator-forms",
        "warning",
        PAD.format(rest=", , axes"),
        PAD.format(rest=""),
        weights={"pads": np.array([1, 1]), "axes": AXES},
        clean_weights={"pads": np.array([0, 1, 0, 1])},
    ),
    Case(
        "operator-forms",
        "error",
        "(float[batch, 1, 4, 4] x) => (float[batch, 1, 2, 2] y) { y = Resize <antialias = 1> (x, , , sizes) }",
        "(float[batch, 1, 4, 4] x) => (float[batch, 1, 2, 2] y) { y = Resize (x, , scales) }",
        weights={"sizes": np.array([1, 1, 2, 2])},
        clean_weights={"scales": np.array([1, 1, 0.5, 0.5], np.float32)},
    ),
    Case(
        "operator-forms",
        "error",
        "(float[batch, 1, 4, 4] x) => (float[batch, 1, 2, 2] y, int64[batch, 1, 2, 2] i) { y, i = "
        "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }",
        "(float[batch, 1, 4, 4] x) => (float[batch, 1, 2, 2] y) { y = "
        "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }",
    ),
    Case("operator-forms", "error", GRID_SAMPLE, GRID_SAMPLE, target="trt:10.16", clean_opset=19),
    Case("operator-forms", "error", GRID_SAMPLE, GRID_SAMPLE.replace("(x, g)", '<mode = "nearest"> (x, g)')),
    Case("opset", "warning", RELU, RELU, opset=23, clean_opset=20),
    Case("opset", "error", RELU, RELU, target="ort", opset=27, clean_opset=26),
    Case(
        "scatter",
        "error",
        "(float[batch, 4] x, float[1, 4] row) => (float[batch, 4] y) { y = ScatterND (x, index, row) }",
        "(float[batch, 4] x, float[batch, 4] row) => (float[batch, 8] y) { y = Concat <axis = 1> (x, row) }",
        weights={"index": np.array([[0]])},
    ),
    Case(
        "scatter",
        "warning",
        "(float[batch, 4] x, float[1, 4] row) => (float[batch, 4] y) { y = ScatterND (x, index, row) }",
        "(float[batch, 4] x, float[batch, 4] row) => (float[batch, 8] y) { y = Concat <axis = 1> (x, row) }",
        target="openvino",
        weights={"index": np.array([[0]])},
    ),
    Case(
        "rank",
        "warning",
        "(float[batch, 2, 4, 2, 4, 3] x) => (float[batch, 2, 2, 4, 4, 3] y) { "
        "y = Transpose <perm = [0, 1, 3, 2, 4, 5]> (x) }",
        "(float[batch, 4, 2, 12] x) => (float[batch, 2, 4, 12] y) { y = Transpose <perm = [0, 2, 1, 3]> (x) }",
    ),
    Case(
        "rank",
        "error",
        "(float[batch, 1, 1, 1, 1, 1, 1, 1, 2] x) => (float[batch, 1, 1, 1, 1, 1, 1, 1, 2] y) { y = Relu (x) }",
        RELU,
    ),
    Case("wide-types", "warning", "(double[batch, 8] x) => (double[batch, 8] y) { y = Relu (x) }", RELU),
    Case(
        "wide-types",
        "note",
        "(float[batch, 8] x) => (int64[batch] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }",
        "(float[batch, 8] x) => (float[batch] y) { y = ReduceMax <keepdims = 0> (x, axes) }",
        clean_weights={"axes": AXES},
    ),
    Case(
        "layer-norm-nchw",
        "warning",
        LAYER_NORM.format(square="Pow (centered, two)"),
        LAYER_NORM_OP,
        weights={"axes": AXES, "two": np.float32(2), "epsilon": np.float32(1e-5)},
        clean_weights={"gain": np.ones(8, np.float32)},
    ),
    Case(
        "layer-norm-nchw",
        "warning",
        LAYER_NORM.format(square="Mul (centered, centered)"),
        LAYER_NORM.format(square="Mul (centered, centered)"),
        weights={"axes": AXES, "epsilon": np.float32(1e-5)},
        clean_weights={"axes": np.array([-1]), "epsilon": np.float32(1e-5)},
    ),
    Case(
        "layer-norm-nchw",
        "warning",
        LAYER_NORM.format(square="Mul (centered, centered)"),
        LAYER_NORM.format(square="Mul (centered, centered)").replace(
            "Div (centered, ", "Add (x, "
        ),  # nothing is normalized
        weights={"axes": AXES, "epsilon": np.float32(1e-5)},
    ),
    Case(
        "attention",
        "note",
        attention("float", 16),
        attention("float16", 16),
        weights={"scale": SCALE},
        clean_weights={"scale": SCALE.astype(HALF)},
    ),
    Case(
        "attention",
        "warning",
        attention("float16", 8),
        attention("float16", 16),
        weights={"scale": SCALE.astype(HALF)},
    ),
    Case(
        "attention",
        "note",
        einsum_attention("float", 16),
        einsum_attention("float16", 16),
        weights={"scale": SCALE},
        clean_weights={"scale": SCALE.astype(HALF)},
    ),
    Case(
        "attention",
        "warning",
        einsum_attention("float16", 8),
        einsum_attention("float16", 16),
        weights={"scale": SCALE.astype(HALF)},
    ),
    Case(
        "attention",
        "warning",
        einsum_attention("float16", 8, "b i h d, ...jhd -> bhij"),
        einsum_attention("float16", 8, "bihd,bjhd->bij"),  # two axes: channels per head unknown
        weights={"scale": SCALE.astype(HALF)},
    ),
    Case(
        "shape-arithmetic",
        "warning",
        """(float[batch, 8, 4] x) => (float[batch, 32] y) {
            shape = Shape (x)
            zero = Constant <value_ints = [0]> ()
            rest = Constant <value_ints = [32]> ()
            size = Gather (shape, zero)
            target = Concat <axis = 0> (size, rest)
            y = Reshape (x, target)
        }""",
        "(float[batch, 8, 4] x) => (float[batch, 32] y) { y = Reshape (x, target) }",
        clean_weights={"target": np.array([-1, 32])},
    ),
    Case(
        "shape-arithmetic",
        "warning",
        "(float[batch, 8] x, int64[2] target) => (float[a, b] y) { y = Reshape (x, target) }",
        "(float[batch, 8] x) => (float[batch, 4, 2] y) { y = Reshape (x, target) }",
        clean_weights={"target": np.array([-1, 4, 2])},
        target="openvino",
    ),
    Case("activations", "warning", "(float[batch, 8] x) => (float[batch, 8] y) { y = Mish (x) }", RELU),
    Case(
        "activations",
        "warning",
        "(float[batch, 8] x) => (float[batch, 8] y) { s = Softplus (x) t = Tanh (s) y = Mul (t, x) }",
        "(float[batch, 8] x) => (float[batch, 8] y) { s = Sigmoid (x) y = Mul (s, x) }",
    ),
    Case(
        "activations",
        "warning",
        "(float[batch, 8] x) => (float[batch, 8] y) { y = PRelu (x, slope) }",
        "(float[batch, 8] x) => (float[batch, 8] y) { y = LeakyRelu (x) }",
        weights={"slope": np.full(8, 0.2, np.float32)},
    ),
    Case(
        "baked-batch",
        "error",
        "(float[batch, 8, 4] x) => (float[2, 32] y) { y = Reshape (x, target) }",
        "(float[batch, 8, 4] x) => (float[batch, 32] y) { y = Reshape (x, target) }",
        weights={"target": np.array([2, 32])},
        clean_weights={"target": np.array([0, 32])},
    ),
    Case(
        "baked-batch",
        "error",
        "(float[batch, 8, 4] x) => (float[1, t, 4] y) { y = Reshape (x, target) }",
        "(float[batch, 8, 4] x) => (float[batch, t, 4] y) { y = Reshape (x, target) }",
        target="ort",
        weights={"target": np.array([1, -1, 4])},
        clean_weights={"target": np.array([0, -1, 4])},
    ),
    Case(
        "baked-batch",
        "error",
        "(float[batch, 8, 4] x) => (float[2, 8, 4] y) { y = Expand (x, target) }",
        "(float[batch, 8, 1] x) => (float[batch, 8, 4] y) { y = Expand (x, target) }",
        weights={"target": np.array([2, 8, 4])},
        clean_weights={"target": np.array([1, 8, 4])},
    ),
    Case(
        "baked-batch",
        "error",
        "(float[batch, 8, 4] x) => (float[batch, 9, 4] y) { y = Concat <axis = 1> (token, x) }",
        "(float[batch, 8, 4] x) => (float[batch, 16, 4] y) { y = Concat <axis = 1> (x, x) }",
        weights={"token": weight(2, 1, 4)},
        clean_weights={},
    ),
    Case("baked-batch", "note", RELU.replace("batch", "3"), RELU),
    Case("half-range", "warning", ADD, ADD, weights={"c": np.float32(-1e9)}, clean_weights={"c": np.float32(-1e4)}),
    Case("half-range", "warning", ADD, ADD, weights={"c": np.float32(1e-12)}, clean_weights={"c": np.float32(1e-6)}),
    Case(
        "half-range",
        "warning",
        CONV,
        CONV,
        weights={"w": np.full((3, 2, 1, 1), 5e3, np.float32)},
        clean_weights={"w": weight(3, 2, 1, 1)},
    ),
    Case(
        "half-range",
        "error",
        CONV,
        CONV,
        weights={"w": np.full((3, 2, 1, 1), np.nan, np.float32)},
        clean_weights={"w": weight(3, 2, 1, 1)},
    ),
    Case(
        "asymmetric-quantization",
        "error",
        QUANTIZE,
        QUANTIZE,
        weights={"scale": SCALE, "zero": np.uint8(128)},
        clean_weights={"scale": SCALE, "zero": np.int8(0)},
    ),
    Case(  # 4 heads, 2001 x 2001, 4 bytes: 64.06 MB
        "attention-memory",
        "warning",
        dense_attention(2001),
        dense_attention(1999),
        target="ort",
        weights={"scale": SCALE},
    ),
    Case(  # TensorRT fuses it in fp16 unless heads are small
        "attention-memory",
        "warning",
        dense_attention(4096, "float16", 8),
        dense_attention(4096, "float16", 16),
        weights={"scale": SCALE.astype(HALF)},
    ),
    Case(
        "image-norm",
        "note",
        image_norm(GROUP_NORM_OP),
        image_norm(GROUP_NORM_OP, side=31, out="batch, 8, 31, 31"),
        target="ort",
        weights=PER_GROUP,
    ),
    Case(
        "image-norm",
        "note",
        image_norm(FOLDED_NORM),
        image_norm("y = BatchNormalization (x, s, b, m, v)"),
        weights=FOLDED,
        clean_weights={name: np.ones(8, np.float32) for name in "sbmv"},
    ),
    Case(
        "image-norm",
        "note",
        image_norm(MEAN_OF_MAP),
        image_norm(SQUEEZE_AND_EXCITE),
        target="openvino",
        weights={"axes": np.array([1, 2, 3])},
    ),
    Case(
        "image-norm",
        "note",
        image_norm(WHOLE_LAYER_NORM.format(axis=1)),
        image_norm(WHOLE_LAYER_NORM.format(axis=2), out="batch, 8, 32, 32"),
        weights={"gain": np.ones((8, 32, 32), np.float32)},
        clean_weights={"gain": np.ones((32, 32), np.float32)},
    ),
    Case(
        "adaptive-pooling",
        "warning",
        POOLING.format(pooled=SUMMED),
        POOLING.format(pooled=WEIGHTED),
        weights={"index": pooling_windows(), "window": np.array([1, 3]), "quarter": SCALE},
        clean_weights={"index": pooling_windows(), "kernel": weight(2, 2)},
        target="ort",
    ),
    Case(
        "resize-mode",
        "warning",
        RESIZE.format(mode="linear", coordinates="asymmetric"),
        RESIZE.format(mode="nearest", coordinates="asymmetric"),
        weights=TIMES_4,
    ),
    Case(
        "resize-mode",
        "warning",
        RESIZE_10,
        RESIZE.format(mode="linear", coordinates="half_pixel"),
        weights=TIMES_4,
        opset=10,
        clean_opset=11,
        target="ort",
    ),
    Case(
        "resize-mode",
        "warning",
        RESIZED_CLASSES,
        RESIZE.format(mode="cubic", coordinates="align_corners"),
        weights=TIMES_4,
    ),
)


def findings(case: Case) -> tuple[Finding, ...]:
    return lint(graph(case.violating, case.weights, opset=case.opset, domains=case.domains), parse_target(case.target))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_rule_finds_its_violation(case: Case) -> None:
    found = [finding for finding in findings(case) if finding.rule == case.rule]
    assert [finding.level for finding in found[:1]] == [case.level]
    assert all(finding.why and finding.remedy for finding in found)
    # Only findings about the whole graph name no node.
    assert all(finding.node for finding in found) or case.rule in ("opset", "baked-batch")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_clean_graph_has_no_findings_of_any_rule(case: Case) -> None:
    weights = case.weights if case.clean_weights is None else case.clean_weights
    clean = graph(case.clean, weights, opset=case.clean_opset or case.opset, domains=case.domains)
    assert lint(clean, parse_target(case.target)) == ()


def test_classes_of_resized_logits_and_norms_of_classifiers_are_no_findings_of_the_rules_for_dense_models() -> None:
    classifier = """(float[batch, 8, 32, 32] x) => (float[batch, 8] y) {
        normed = GroupNormalization <num_groups = 2> (x, s, b)
        y = ReduceMean <keepdims = 0> (normed, axes)
    }"""
    weights = {**TIMES_4, **PER_GROUP, "axes": np.array([2, 3])}
    for body in (RESIZED_LOGITS, classifier):
        found = {finding.rule for finding in lint(graph(body, weights), parse_target("ort"))}
        assert not found & {"resize-mode", "image-norm"}


def test_every_rule_has_a_case_and_a_docstring() -> None:
    assert {rule.name for rule in RULES} == {case.rule for case in CASES}
    assert all(rule.check.__doc__ for rule in RULES)


@pytest.mark.parametrize(
    ("version", "level"), [("10.3", "error"), ("10.8", "error"), ("10.9", None), ("10.16", None), ("11.4", None)]
)
def test_group_normalization_21_is_an_error_before_tensorrt_10_9(version: str, level: str | None) -> None:
    group_norm = graph(GROUP_NORM, PER_CHANNEL, opset=21)
    forms = [
        finding for finding in lint(group_norm, parse_target(f"trt:{version}")) if finding.rule == "operator-forms"
    ]
    assert [finding.level for finding in forms] == ([level] if level else [])


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("trt:8.6", {("operator-forms", "error")}),
        ("trt:10.0", {("operator-forms", "warning")}),
        ("trt:11.4", {("operator-forms", "warning")}),
        ("openvino", set()),
    ],
)
def test_a_reduction_by_scatter_elements_is_a_plugin_from_tensorrt_10_on(
    target: str, found: set[tuple[str, str]]
) -> None:
    """It is no assignment to a slice, which the rule for the data path is about."""
    reduction = graph(
        """(float[batch, 4] x, float[1, 4] row) => (float[batch, 4] y) {
            y = ScatterElements <axis = 1, reduction = "add"> (x, where, row)
        }""",
        {"where": np.array([[0, 1, 2, 3]])},
        opset=17 if target == "trt:8.6" else 20,
    )
    assert {(finding.rule, finding.level) for finding in lint(reduction, parse_target(target))} == found


def test_nodes_that_compute_shapes_and_constants_are_not_in_the_data_path() -> None:
    """ScatterND on a shape, and float64 and int64 constants, do not run per image."""
    constants = graph(
        """(float[batch, 8, 4] x) => (float[batch, 4, 8] y) {
            start = Constant <value_ints = [0, 0, 0]> ()
            target = ScatterND (start, index, sizes)
            wide = Cast <to = 11> (half)
            factor = Cast <to = 1> (wide)
            reshaped = Reshape (x, target)
            y = Mul (reshaped, factor)
        }""",
        {"index": np.array([[0], [1], [2]]), "sizes": np.array([-1, 4, 8]), "half": np.float32(0.5)},
    )
    assert lint(constants, parse_target("trt")) == ()


class DecomposedMish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(nn.functional.softplus(x))


class VarMeanNorm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize(("module", "rule"), [(DecomposedMish(), "activations"), (VarMeanNorm(), "layer-norm-nchw")])
def test_operators_that_pytorch_decomposes_are_found(module: nn.Module, rule: str) -> None:
    captured = capture(module.eval(), [torch.rand(1, 8, 4, 4)], dynamic_batch=False).graph
    found = lint(passes.specialize(passes.optimize(captured), "trt"), parse_target("trt"))
    assert [finding.rule for finding in found if finding.level == "warning"] == [rule]


def test_unused_indices_are_not_in_the_data_path() -> None:
    body = "(float[batch, 8] x) => (float[batch, 5] y) <int64[1] k = {5}> { y, indices = TopK (x, k) }"
    assert lint(graph(body), parse_target("trt")) == ()


def test_subgraphs_are_checked() -> None:
    branches = graph(
        """(float[batch, 8] x, bool c) => (float[batch, 8] y) {
            y = If (c) <
                then_branch = yes () => (float[batch, 8] a) { a = Mish (x) },
                else_branch = no () => (float[batch, 8] b) { b = Relu (x) }
            >
        }"""
    )
    assert [finding.rule for finding in lint(branches, parse_target("trt"))] == ["activations"]


def test_local_functions_are_checked() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        g (float[batch, 8] x) => (float[batch, 8] y) { y = mine.act (x) }
        <domain: "mine", opset_import: ["" : 20]> act (x) => (y) { y = Mish (x) }"""
    )
    found = lint(OnnxGraph(ir.from_proto(model)), parse_target("trt"))
    assert [finding.rule for finding in found] == ["activations"]


def test_initializers_listed_as_inputs_by_older_files_are_weights() -> None:
    text = "(float[batch, 8] x, int64[3] target) => (float[batch, 4, 2] y) { y = Reshape (x, target) }"
    assert lint(graph(text, {"target": np.array([-1, 4, 2])}), parse_target("trt")) == ()


def test_shape_arithmetic_is_reported_once_at_its_source() -> None:
    (case,) = (case for case in CASES if "Shape (x)" in case.violating)
    assert [finding.node for finding in findings(case)] == ["Shape producing shape"]


def test_an_unnamed_node_is_identified_by_its_output() -> None:
    (found,) = lint(graph("(float[batch, 8] x) => (float[batch, 8] y) { y = Mish (x) }"), parse_target("trt"))
    assert found.node == "Mish producing y"


class Shift(nn.Module):
    """ShiftViT's shift, written as an assignment to a slice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = torch.zeros_like(x)
        shifted[:, :2, :, 1:] = x[:, :2, :, :-1]
        shifted[:, 2:] = x[:, 2:]
        return shifted


def test_an_assignment_to_a_slice_is_reported_with_its_module() -> None:
    module = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), shift=Shift()))
    graph = passes.optimize(capture(module, [torch.zeros(2, 3, 4, 4)], dynamic_batch=True).graph)
    found = [finding for finding in lint(graph, parse_target("trt")) if finding.rule == "scatter"]
    assert {(finding.level, finding.module) for finding in found} == {("error", "shift")}


@pytest.fixture(scope="module")
def captured() -> OnnxGraph:
    model = loading.from_name("shiftvit_cifar10")
    example = tuple(tensor.repeat(2, 1, 1, 1) for tensor in model.example)
    return passes.optimize(capture(model.module, example, dynamic_batch=True).graph)


@pytest.mark.parametrize("target", ["trt", "trt:10.16", "trt:11.4", "openvino", "ort"])
def test_a_graph_exported_for_a_target_has_no_findings(captured: OnnxGraph, target: str) -> None:
    fmt = target.partition(":")[0]
    found = lint(passes.specialize(captured, fmt), parse_target(target))
    assert not has_errors(found)
    assert found == ()


def test_a_graph_for_tensorrt_86_needs_opset_17(captured: OnnxGraph) -> None:
    assert has_errors(lint(passes.specialize(captured, "trt"), parse_target("trt:8.6")))
    assert not has_errors(lint(passes.specialize(captured, "trt", opset=17), parse_target("trt:8.6")))


def test_the_report_shows_node_reason_and_remedy() -> None:
    target = parse_target("trt")
    broken = graph(
        "(float[batch, 4] x, float[1, 4] row) => (float[batch, 4] y) { y = ScatterND (x, index, row) }",
        {"index": np.array([[0]])},
    )
    found = lint(broken, target)
    output = io.StringIO()
    for part in lint_parts(found, target):
        Console(file=output, width=140).print(part)
    assert "ScatterND producing y" in output.getvalue()
    assert "torch.cat" in output.getvalue()
    assert "TensorRT 10.3: 1 error" in output.getvalue()
    data = json.loads(json.dumps(lint_json(found, target)))
    assert (data["passed"], data["findings"][0]["rule"]) == (False, "scatter")


def test_the_report_of_a_clean_graph_has_no_table() -> None:
    target = parse_target("ort")
    assert lint_summary((), target) == "ONNX Runtime: no problems found"
    assert lint_json((), target)["passed"] is True
    assert len(lint_parts((), target)) == 1


def test_findings_with_the_same_reason_share_a_row() -> None:
    target = parse_target("trt")
    chain = " ".join(f"v{i + 1} = Mish (v{i})" for i in range(9))
    found = lint(graph(f"(float[batch, 8] v0) => (float[batch, 8] v9) {{ {chain} }}"), target)
    output = io.StringIO()
    for part in lint_parts(found, target):
        Console(file=output, width=140).print(part)
    assert len(found) == 9
    assert "9 nodes:" in output.getvalue()
    assert "v4" not in output.getvalue()
