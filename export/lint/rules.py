"""The lint rules, one function each; those for detection and segmentation are in `dense_rules`.

Statements about fusion are based on kernel lists of TensorRT-RTX 1.7, whose compiler TensorRT shares; findings about
fusion are advice and never errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import static_size
from edgevit.export.lint.context import (
    LintContext,
    build_context,
    has_dtype,
    is_input,
    module_path,
    node_name,
    producer,
    stored_array,
)
from edgevit.export.lint.dense_rules import adaptive_pooling, attention_memory, image_norm, resize_mode
from edgevit.export.lint.findings import LEVELS, Diagnostic, Finding
from edgevit.export.lint.forms import TENSORRT_FORMS, OperatorForm, has_reduction
from edgevit.export.lint.openvino_forms import OPENVINO_FORMS
from edgevit.export.lint.patterns import (
    attention_products,
    decomposed_layer_norms,
    fixed_batch,
    head_channels,
    is_mish,
)
from edgevit.export.lint.targets import (
    SUPPORT,
    TESTED_OPENVINO,
    Level,
    LintSupport,
    LintTarget,
    dotted,
    find_unsupported,
    newest_opset,
)
from edgevit.export.quantization.fp16_rules import FP16_MAX
from edgevit.formats import get_format
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class Rule:
    """A named check and the formats it applies to."""

    name: str
    targets: frozenset[str]
    check: Callable[[LintContext], Iterator[Diagnostic]]


def lint(graph: OnnxGraph, target: LintTarget) -> tuple[Finding, ...]:
    """Check a graph with all rules for `target`; return the findings, errors first, then in graph order."""
    context = build_context(graph, target)
    found = [
        _finding(rule, diagnostic) for rule in RULES if target.fmt in rule.targets for diagnostic in rule.check(context)
    ]
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def _finding(rule: Rule, diagnostic: Diagnostic) -> Finding:
    at = diagnostic.at
    return Finding(
        rule=rule.name,
        level=diagnostic.level,
        node=at if isinstance(at, str) else node_name(at),
        module="" if isinstance(at, str) else module_path(at),
        why=diagnostic.why,
        remedy=diagnostic.remedy,
    )


# Support


def operators(context: LintContext) -> Iterator[Diagnostic]:
    """Operators that the target does not support, or not in this version."""
    for node in context.nodes:
        if (unsupported := find_unsupported(node, context.target)) is not None:
            yield Diagnostic(unsupported.level, node, unsupported.why, unsupported.remedy)


def operator_forms(context: LintContext) -> Iterator[Diagnostic]:
    """Forms of supported operators that the target refuses or computes wrongly, in this version or in all."""
    for node in context.nodes:
        for form in _FORMS[context.target.fmt]:
            supported = form.since is not None and form.since <= context.target.version
            if not supported and node.op_type == form.op_type and not node.domain and form.matches(node, context):
                yield Diagnostic(form.level, node, f"{form.description}: {_effect(form)}", form.remedy)


_FORMS = {"trt": TENSORRT_FORMS, "openvino": OPENVINO_FORMS}
_EFFECTS = {"refused": f"{TESTED_OPENVINO} refuses it", "wrong": f"{TESTED_OPENVINO} computes it wrongly"}


def _effect(form: OperatorForm) -> str:
    if form.effect is not None:
        return _EFFECTS[form.effect]
    return "in all TensorRT versions" if form.since is None else f"supported from {dotted(form.since)} on"


def opset(context: LintContext) -> Iterator[Diagnostic]:
    """An opset newer than the target supports."""
    newest = newest_opset(context.target)
    if newest is None or context.opset <= newest:
        return
    remedy = f"export with --opset {newest}"
    if release := context.target.support.newer_opsets_rejected_by:
        why = f"the graph has opset {context.opset}, and {release} rejects opsets above {newest}"
        yield Diagnostic("error", "", why, remedy)
    else:
        why = f"the graph has opset {context.opset}, and {context.target} supports {newest}: it may misread operators"
        yield Diagnostic("warning", "", why, remedy)


def asymmetric_quantization(context: LintContext) -> Iterator[Diagnostic]:
    """Quantization with a nonzero zero point, which TensorRT's parser rejects."""
    for node in (node for node in context.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")):
        zero = stored_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None and np.any(zero.astype(np.float32) != 0):
            yield Diagnostic(
                "error",
                node,
                f"{node.op_type} with a nonzero zero point: TensorRT supports only symmetric quantization",
                "quantize symmetrically to int8: zero point 0, scale = largest magnitude / 127",
            )


# Data movement


def scatter(context: LintContext) -> Iterator[Diagnostic]:
    """ScatterND and ScatterElements in the data path: each copies its whole tensor, and no simplifier removes it.

    With a reduction, ScatterElements is no assignment to a slice.
    """
    for node in context.find("ScatterND", "ScatterElements"):
        if node.op_type == "ScatterElements" and has_reduction(node):
            continue
        supported = node.op_type != "ScatterND" or context.target.support.supports_scatter_nd
        level: Level = "warning" if supported else "error"
        yield Diagnostic(
            level,
            node,
            f"{node.op_type} in the data path, usually from an assignment to a slice (`x[:, a:b] = y`): ShiftViT-T "
            "needs 469 kernels with it and 210 without",
            "write the assignment as torch.cat of slices, padded with torch.nn.functional.pad",
        )


def rank(context: LintContext) -> Iterator[Diagnostic]:
    """Tensors of more than five dimensions, for example from a window partition."""
    limit = context.target.support.max_rank
    for node in context.nodes:
        largest = max((len(value.shape) for value in node.outputs if value.shape is not None), default=0)
        if node in context.data and largest > 5:
            unsupported = limit is not None and largest > limit
            title = get_format(context.target.fmt).title
            why = f"{title} supports at most {limit}" if unsupported else "more than 5 run as slow generic copies"
            yield Diagnostic(
                "error" if unsupported else "warning",
                node,
                f"a tensor of {largest} dimensions: {why}",
                "merge adjacent dimensions before the transpose: (B, H, h, W, w, C) to (B H, h, W, w C)",
            )


def shape_arithmetic(context: LintContext) -> Iterator[Diagnostic]:
    """Shapes that are computed at run time from other shapes or from the data."""
    for node in context.nodes:
        if node.op_type in ("Shape", "Size") and node in context.shapes:
            yield _shape_computation(node)
        position = _SHAPE_INPUTS.get(node.op_type)
        if position is None or node.domain or node not in context.data:
            continue
        for source in node.inputs[position : position + 1]:
            if producer(source) in context.data or is_input(source):
                yield Diagnostic(
                    "warning",
                    node,
                    f"the output shape of {node.op_type} depends on the data: this splits the engine and prevents "
                    "CUDA graph capture",
                    "use a fixed shape and a mask",
                )
    for node in context.find("NonZero"):
        yield Diagnostic(
            "warning",
            node,
            "the output shape of NonZero depends on the data",
            "use a fixed shape and a mask (torch.where)",
        )


_SHAPE_INPUTS = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Range": 1}


def _shape_computation(node: ir.Node) -> Diagnostic:
    source = node.inputs[0]
    if source is not None and source.shape is not None and source.shape.is_static():
        return Diagnostic(
            "note",
            node,
            f"{node.op_type} of a tensor with a static shape: the shape arithmetic can be folded",
            "fold it before the build: onnxsim FILE.onnx FOLDED.onnx",
        )
    return Diagnostic(
        "warning",
        node,
        f"{node.op_type} of a tensor with a dynamic shape: the shape arithmetic cannot be folded, runs on the host and "
        "prevents fusion of the layers around it",
        "make only the batch dynamic, and use -1 for it in view and reshape",
    )


def baked_batch(context: LintContext) -> Iterator[Diagnostic]:
    """A batch size that is a constant in the graph: in a node although the inputs are dynamic, or in all inputs."""
    first = [static_size(value, 0) for value in context.inputs]
    if first and all(size is not None for size in first):
        yield Diagnostic(
            "note",
            "",
            f"the batch size is fixed to {', '.join(str(size) for size in sorted({size for size in first if size}))}: "
            "the engine accepts no other",
            "export with --dynamic-batch MIN:OPT:MAX if other batch sizes are needed",
        )
        return
    for node in context.find("Reshape", "Expand", "Concat"):
        if why := fixed_batch(node):
            yield Diagnostic(
                "error",
                node,
                f"a constant batch size: {why}",
                "use -1 or x.shape[0] for the batch in the module, and export with a batch of 2 or more",
            )


# Fusion


def layer_norm_nchw(context: LintContext) -> Iterator[Diagnostic]:
    """LayerNorms over the channels of an NCHW tensor that are written with basic operators."""
    for mean in decomposed_layer_norms(context):
        yield Diagnostic(
            "warning",
            mean,
            "a LayerNorm over the channels of an NCHW tensor, written with basic operators: 7 kernels instead of 4, "
            "and its squares overflow in fp16",
            "use x.permute(0, 2, 3, 1), torch.nn.LayerNorm and permute back: every runtime has one kernel for it",
        )


def attention(context: LintContext) -> Iterator[Diagnostic]:
    """Attention that TensorRT does not fuse: in fp32, or with heads of 8 channels or fewer."""
    for product in (*attention_products(context), *context.find("Attention")):
        query, size = product.inputs[0], head_channels(product)
        if size is not None and size <= 8:
            yield Diagnostic(
                "warning",
                product,
                f"attention with {size} channels per head is not fused in any precision: 10 kernels instead of 7",
                "use fewer heads of at least 16 channels; the model must be trained again",
            )
        if query is not None and query.dtype == ir.DataType.FLOAT:
            yield Diagnostic(
                "note",
                product,
                "attention in fp32 is not fused: 10 kernels instead of 7 in fp16",
                "export with --precision fp16",
            )


def activations(context: LintContext) -> Iterator[Diagnostic]:
    """Activations that are not fused into the preceding convolution: Mish, also in basic operators, and PReLU."""
    for node in context.find("Mish", "PRelu", "Mul"):
        name = {"Mish": "Mish", "PRelu": "PReLU"}.get(node.op_type) or ("Mish" if is_mish(node) else None)
        if name:
            yield Diagnostic(
                "warning",
                node,
                f"{name} is not fused into the preceding layer: one more kernel and one more pass over memory each",
                "train with ReLU, GELU, SiLU or HardSwish, which are fused",
            )


# Element types


def wide_types(context: LintContext) -> Iterator[Diagnostic]:
    """Nodes and inputs at which float64 or int64 enters the data path."""
    for dtype in (ir.DataType.DOUBLE, ir.DataType.INT64):
        for value in context.inputs:
            if value.dtype == dtype:
                yield _wide_type(context, dtype, str(value.name))
        for node in context.nodes:
            enters = any(value.dtype == dtype and (value.uses() or value.is_graph_output()) for value in node.outputs)
            if node in context.data and enters and not any(has_dtype(value, dtype) for value in node.inputs):
                yield _wide_type(context, dtype, node)


def _wide_type(context: LintContext, dtype: ir.DataType, at: ir.Node | str) -> Diagnostic:
    if dtype == ir.DataType.DOUBLE:
        why = f"float64 in the data path: {context.target.support.float64_effect}"
        return Diagnostic("warning", at, why, "cast to float32 in the module: x.float()")
    clamps_before = context.target.support.clamps_int64_before
    if clamps_before is not None and context.target.version < clamps_before:
        why = f"int64 in the data path: {context.target} clamps it to int32"
        return Diagnostic("warning", at, why, "use int32 if the values fit: x.int()")
    why = "int64 in the data path: few kernels support it, and casts are inserted around them"
    return Diagnostic("note", at, why, "use int32")


_FP16_ZERO = 2.0**-25  # magnitudes up to this round to 0 in fp16
_LARGE_ACTIVATION = 8.0  # normalized activations seldom leave ±8
_ACCEPTS_INFINITY = frozenset({"Add", "Clip", "Max", "Min", "Where"})  # masks and bounds
_WEIGHT_INPUTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def half_range(context: LintContext) -> Iterator[Diagnostic]:
    """Weights that fp16 cannot represent, or that make its sums overflow."""
    seen: set[ir.Value] = set()
    for node in context.nodes:
        for position, value in enumerate(node.inputs):
            if value is None or value in seen or node not in context.data:
                continue
            array = stored_array(value)
            if array is not None and array.dtype in (np.float16, np.float32, np.float64) and array.size:
                seen.add(value)
                yield from _check_fp16_range(node, position, array)


def _check_fp16_range(node: ir.Node, position: int, array: Array) -> Iterator[Diagnostic]:
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        if np.isnan(values).any() or node.op_type not in _ACCEPTS_INFINITY:
            why = "a weight contains infinity or NaN, and so will every output"
            yield Diagnostic(
                "error", node, why, "check the checkpoint: training diverged, or a cast to fp16 overflowed"
            )
        return
    largest = float(np.abs(values).max())
    if largest > FP16_MAX and node.op_type != "Clip":
        yield Diagnostic(
            "warning",
            node,
            f"a weight of {largest:.3g} becomes infinity in fp16, whose largest value is 65504",
            "mask with -1e4 instead of -1e9; scale this layer down and the next one up",
        )
    elif position == _WEIGHT_INPUTS.get(node.op_type) and (
        (total := _max_row_sum(node, values)) * _LARGE_ACTIVATION > FP16_MAX
    ):
        yield Diagnostic(
            "warning",
            node,
            f"the magnitudes of one output's weights sum to {total:.3g}: inputs of {FP16_MAX / total:.2g} overflow in "
            "fp16",
            "scale this layer down and the next one up, or keep it in fp32",
        )
    elif node.op_type == "Add" and array.size == 1 and 0 < largest <= _FP16_ZERO:
        yield Diagnostic(
            "warning",
            node,
            f"the added constant {largest:.3g} rounds to 0 in fp16: a division by the sum may divide by 0",
            "use an epsilon of 1e-5 or more, or torch.nn.LayerNorm, whose statistics stay in fp32",
        )


def _max_row_sum(node: ir.Node, weight: Array) -> float:
    """Return the largest sum of weight magnitudes over the inputs of one output channel."""
    transposed = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    magnitudes = np.abs(weight)
    if weight.ndim < 2:
        return float(magnitudes.sum())
    if transposed:  # (out, in, ...)
        return float(magnitudes.reshape(len(weight), -1).sum(1).max())
    if node.op_type == "ConvTranspose":  # (in, out, ...)
        return float(magnitudes.sum((0, *range(2, weight.ndim))).max())
    return float(magnitudes.sum(-2).max())  # (..., in, out)


def _targets(applies: Callable[[LintSupport], bool]) -> frozenset[str]:
    return frozenset(fmt for fmt, support in SUPPORT.items() if applies(support))


_ALL = _targets(lambda _support: True)
_TRT = _targets(lambda support: support.tensorrt_parser)
_COMPILERS = _targets(lambda support: support.compiles)
_OPSET_LIMITED = _targets(lambda support: support.newest_opset is not None)

RULES: tuple[Rule, ...] = (
    Rule("operators", _ALL, operators),
    Rule("operator-forms", frozenset(_FORMS), operator_forms),
    Rule("opset", _OPSET_LIMITED, opset),
    Rule("scatter", _ALL, scatter),
    Rule("rank", _COMPILERS, rank),
    Rule("wide-types", _ALL, wide_types),
    Rule("layer-norm-nchw", _ALL, layer_norm_nchw),
    Rule("attention", _TRT, attention),
    Rule("shape-arithmetic", _COMPILERS, shape_arithmetic),
    Rule("activations", _TRT, activations),
    Rule("baked-batch", _ALL, baked_batch),
    Rule("half-range", _TRT, half_range),
    Rule("asymmetric-quantization", _TRT, asymmetric_quantization),
    Rule("attention-memory", _ALL, attention_memory),
    Rule("image-norm", _ALL, image_norm),
    Rule("adaptive-pooling", _ALL, adaptive_pooling),
    Rule("resize-mode", _ALL, resize_mode),
)
