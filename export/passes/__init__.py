"""Pass pipelines: PASSES for all formats, and one tuple per format pipeline.

A pass rewrites a model in place. To add one, write its file, add one line to a tuple here, and write
`tests/export/passes/test_<pass>.py`. One that is there for its speed also needs rows in docs/forms.md, which name the
runtimes and instruction sets that use it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from edgevit.cpu import fp32_lanes, has_amx_bf16, has_avx512, has_bf16
from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.absorb_shuffle import absorb_shuffle
from edgevit.export.passes.canonicalize_attention import canonicalize_attention
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.decompose_attention import decompose_attention
from edgevit.export.passes.decompose_gelu import decompose_gelu
from edgevit.export.passes.decompose_group_norm import decompose_group_norm
from edgevit.export.passes.decompose_mish import decompose_mish
from edgevit.export.passes.decompose_onesided_dft import decompose_onesided_dft
from edgevit.export.passes.decompose_softmax import decompose_softmax
from edgevit.export.passes.decompose_wrap_pad import decompose_wrap_pad
from edgevit.export.passes.downgrade_opset import OLDEST_OPSET, OpsetError, downgrade_opset
from edgevit.export.passes.eliminate_ceil_mode import eliminate_ceil_mode
from edgevit.export.passes.eliminate_pads import eliminate_pads
from edgevit.export.passes.eliminate_slices import eliminate_slices
from edgevit.export.passes.eliminate_zero_states import eliminate_zero_states
from edgevit.export.passes.expand_depthwise import expand_depthwise
from edgevit.export.passes.flatten_layer_norm import flatten_layer_norm
from edgevit.export.passes.flatten_linear import flatten_linear
from edgevit.export.passes.fold_attention_bias import fold_attention_bias
from edgevit.export.passes.fold_channel_order import fold_channel_order
from edgevit.export.passes.fold_constants import fold_constants
from edgevit.export.passes.fold_layer_norm import fold_layer_norm
from edgevit.export.passes.fold_layer_scale import fold_layer_scale
from edgevit.export.passes.fold_scale import fold_scale
from edgevit.export.passes.fold_shortcut_scale import fold_shortcut_scale
from edgevit.export.passes.fold_static_dims import fold_static_dims
from edgevit.export.passes.freeze_reshape_shapes import freeze_reshape_shapes
from edgevit.export.passes.fuse_affine import fuse_affine
from edgevit.export.passes.fuse_batchnorm import fuse_batchnorm
from edgevit.export.passes.fuse_channel_shuffle import fuse_channel_shuffle
from edgevit.export.passes.fuse_slices import fuse_slices
from edgevit.export.passes.gather_rows import gather_rows
from edgevit.export.passes.group_norm_by_rows import group_norm_by_rows
from edgevit.export.passes.group_norm_from_moments import group_norm_from_moments
from edgevit.export.passes.hard_sigmoid_to_clip import hard_sigmoid_to_clip
from edgevit.export.passes.linear_as_sum import linear_as_sum
from edgevit.export.passes.linear_before_gather import linear_before_gather
from edgevit.export.passes.linear_before_norm import linear_before_norm
from edgevit.export.passes.mean_before_linear import mean_before_linear
from edgevit.export.passes.merge_branches import merge_branches
from edgevit.export.passes.merge_groups import merge_groups
from edgevit.export.passes.merge_heads import merge_heads
from edgevit.export.passes.merge_linear import merge_linear
from edgevit.export.passes.merge_reshapes import merge_reshapes
from edgevit.export.passes.pad_average_pool import pad_average_pool
from edgevit.export.passes.pair_groups import pair_groups
from edgevit.export.passes.pointwise_conv_to_matmul import pointwise_conv_to_matmul
from edgevit.export.passes.project_queries import project_queries
from edgevit.export.passes.project_tokens import project_tokens
from edgevit.export.passes.prune_unread_rows import prune_unread_rows
from edgevit.export.passes.push_gather_through_concat import push_gather_through_concat
from edgevit.export.passes.push_scale_to_query import push_scale_to_query
from edgevit.export.passes.slice_wide_maps import slice_wide_maps
from edgevit.export.passes.slice_windows import slice_windows
from edgevit.export.passes.split_linear import split_linear
from edgevit.export.passes.strided_heads import strided_heads
from edgevit.export.passes.transpose_narrow_attention import transpose_narrow_attention
from edgevit.export.passes.underflow_masks import underflow_masks
from edgevit.export.passes.winograd_rows import winograd_rows
from edgevit.formats import Format, PassPipeline, get_format
from edgevit.types import Precision

__all__ = ["FORMAT_PASSES", "OLDEST_OPSET", "PASSES", "FormatPass", "PassTarget", "optimize", "specialize"]

Pass: TypeAlias = Callable[[ir.Model], None]
# "correctness": the runtime refuses the graph without the pass, or computes it wrongly or less accurately.
Purpose: TypeAlias = Literal["speed", "correctness"]

# Operators that a pipeline's runtimes misread in a format's opset, and the last opset that they read correctly.
# TensorRT's parser takes linear interpolation of GridSample in opset 20 for nearest (NVIDIA/TensorRT issue 4646).
# OpenVINO ignores the axis of DFT in opset 20, where it is an input.
LAST_OPSETS: Mapping[PassPipeline, Mapping[str, int]] = {
    "tensorrt": {"GridSample": 19},
    "openvino": {"DFT": 19},
}


@dataclass(frozen=True, slots=True)
class PassTarget:
    """The format, precision and opset that a graph is specialized for."""

    format: Format
    precision: Precision
    opset: int

    @property
    def has_native_group_norm(self) -> bool:
        """Whether GroupNormalization of opset 21 stays in the graph."""
        return self.format.group_norm == "native" and self.opset >= 21

    @property
    def is_int8(self) -> bool:
        return self.precision == "int8"


@dataclass(frozen=True, slots=True)
class FormatPass:
    """A pass in the pipeline of a format; `options` are its keyword arguments, `applies` whether it runs at all."""

    rewrite: Callable[..., None]
    purpose: Purpose = "speed"
    applies: Callable[[PassTarget], bool] = lambda _: True
    options: Callable[[PassTarget], Mapping[str, Any]] = lambda _: {}


_BF16_OUTPUTS = 16  # of a vector of AVX-512, and of a tile of AMX

# For all formats, in this order: the canonical form of a graph, which the other passes and the int8 conversion expect.
PASSES: tuple[Pass, ...] = (
    cleanup,
    fold_constants,
    fold_static_dims,
    freeze_reshape_shapes,
    eliminate_slices,
    eliminate_pads,
    eliminate_zero_states,
    eliminate_ceil_mode,
    fuse_slices,
    fuse_batchnorm,
    fuse_affine,
    fold_layer_scale,
    fold_shortcut_scale,
    slice_windows,
    fold_channel_order,
    push_scale_to_query,
    fuse_channel_shuffle,
    push_gather_through_concat,
    merge_reshapes,
)

# For all formats, after the passes that only some formats need.
_GENERIC: tuple[FormatPass, ...] = (
    FormatPass(decompose_group_norm, "correctness", lambda target: not target.has_native_group_norm),
    FormatPass(decompose_gelu, "correctness", lambda target: target.opset < 20),
    FormatPass(decompose_wrap_pad, "correctness", lambda target: target.opset < 19),
    FormatPass(decompose_mish, "correctness", lambda target: target.opset < 18),
    FormatPass(downgrade_opset, "correctness", options=lambda target: {"opset": target.opset}),
)


def _is_deployable(target: PassTarget) -> bool:
    """Whether the file is for a runtime on this processor, rather than for exchange."""
    return target.format.deployable


_ALL_FACTORS = {"smallest": 1e-30, "largest": 1e30}  # but 0, which the explanation of a fault cannot divide by

# Forms that ONNX Runtime and OpenVINO run faster on processors, or more accurately.
_PROCESSOR: tuple[FormatPass, ...] = (
    FormatPass(fold_scale),
    FormatPass(fold_layer_scale, options=lambda _: _ALL_FACTORS),
    FormatPass(hard_sigmoid_to_clip),
    FormatPass(prune_unread_rows, applies=_is_deployable),
    FormatPass(mean_before_linear, applies=lambda target: _is_deployable(target) and _is_float(target)),
    FormatPass(project_queries, applies=lambda target: _is_deployable(target) and target.precision == "fp32"),
    FormatPass(split_linear, applies=_is_deployable),
    FormatPass(project_tokens),
    FormatPass(expand_depthwise),
    FormatPass(group_norm_by_rows, "correctness", lambda target: target.opset >= 18),  # of ReduceSumSquare's axes
)


# Those that only ONNX Runtime runs faster, or that OpenVINO runs faster under other conditions.
_ONNX_RUNTIME: tuple[FormatPass, ...] = (
    FormatPass(merge_linear),
    FormatPass(strided_heads, applies=_is_deployable),
    FormatPass(underflow_masks),
    FormatPass(gather_rows),
    FormatPass(
        merge_groups,
        applies=lambda target: _is_deployable(target) and fp32_lanes() > 0,
        options=lambda _: {"lanes": fp32_lanes()},
    ),
    FormatPass(slice_wide_maps, applies=lambda target: _is_deployable(target) and _is_float(target)),
    # 18: of ReduceMax's axes as an input
    FormatPass(decompose_softmax, applies=lambda target: _is_deployable(target) and target.opset >= 18),
)


def _is_float(target: PassTarget) -> bool:
    """Whether no layer is in int8, whose inputs must stay as they were calibrated."""
    return not target.is_int8


# Behind all passes that look for convolutions.
_CONVOLUTIONS: tuple[FormatPass, ...] = (
    FormatPass(
        winograd_rows, applies=lambda target: _is_deployable(target) and target.precision == "fp32" and has_avx512()
    ),
)


# Forms from which TensorRT's compiler makes fewer kernels.
_TENSORRT: tuple[FormatPass, ...] = (
    FormatPass(absorb_shuffle, applies=_is_float),
    FormatPass(pair_groups, applies=lambda target: target.precision == "fp16"),
    FormatPass(linear_before_norm, applies=_is_float),
    FormatPass(merge_heads, applies=_is_float),
    FormatPass(merge_linear, applies=_is_float),
    FormatPass(merge_branches, applies=_is_float),
    FormatPass(linear_before_gather, applies=_is_float),
    FormatPass(group_norm_from_moments, options=lambda target: {"channels_last": not target.is_int8}),
    FormatPass(pointwise_conv_to_matmul, applies=_is_float),
    FormatPass(fold_attention_bias, applies=_is_float),
    FormatPass(
        decompose_attention,
        applies=_is_float,
        options=lambda target: {"max_keys": 8} if target.precision == "fp32" else {},  # where none is fused
    ),
    FormatPass(canonicalize_attention, applies=lambda target: target.precision == "fp16"),
    FormatPass(flatten_linear, applies=_is_float),
    FormatPass(linear_as_sum, applies=_is_float),
)


def _computes_in_bf16(target: PassTarget) -> bool:
    """Whether OpenVINO computes floats in bf16."""
    # int8 runs its float layers in bf16, too, unless some stay in float for their accuracy: docs/forms.md
    return has_bf16() and target.precision in ("bf16", "int8")


def _multiplies_in_amx_bf16(target: PassTarget) -> bool:
    """Whether OpenVINO multiplies floats in bf16 with AMX."""
    return has_amx_bf16() and _computes_in_bf16(target)


def _openvino_lanes(target: PassTarget) -> int:
    """Return the outputs of a group that OpenVINO's kernels have room for; 0 if merged groups are not faster."""
    if _computes_in_bf16(target):
        return _BF16_OUTPUTS
    return 0 if has_avx512() and target.precision != "fp32" else fp32_lanes()


def _merges_linear_for_openvino(target: PassTarget) -> bool:
    return (target.precision == "fp32" and has_avx512()) or (target.precision == "bf16" and has_amx_bf16())


# Before `split_linear`, behind which three layers read a norm.
_OPENVINO_NORMS: tuple[FormatPass, ...] = (FormatPass(fold_layer_norm, applies=_is_float),)

# Merged layers and groups, channel shuffles in weights, and forms that OpenVINO refuses or computes wrongly.
_OPENVINO: tuple[FormatPass, ...] = (
    FormatPass(flatten_layer_norm, applies=lambda target: target.precision == "fp32"),
    FormatPass(merge_linear, applies=_merges_linear_for_openvino),
    FormatPass(
        merge_groups,
        applies=lambda target: _openvino_lanes(target) > 0,
        options=lambda target: {"lanes": _openvino_lanes(target)},
    ),
    FormatPass(absorb_shuffle),
    FormatPass(transpose_narrow_attention, applies=_multiplies_in_amx_bf16),
    FormatPass(pad_average_pool, "correctness"),
    FormatPass(decompose_onesided_dft, "correctness"),
    FormatPass(decompose_wrap_pad, "correctness"),
)

FORMAT_PASSES: Mapping[PassPipeline, tuple[FormatPass, ...]] = {
    "generic": (*_PROCESSOR, *_ONNX_RUNTIME, *_CONVOLUTIONS, *_GENERIC),
    "tensorrt": (*_TENSORRT, *_GENERIC),
    "openvino": (*_OPENVINO_NORMS, *_PROCESSOR, *_OPENVINO, *_CONVOLUTIONS, *_GENERIC),
}


def optimize(graph: OnnxGraph) -> OnnxGraph:
    """Apply the passes for all formats."""
    return graph.apply_all([(rewrite.__name__, rewrite) for rewrite in PASSES])


def specialize(
    graph: OnnxGraph, fmt: str | Format, *, precision: Precision = "fp32", opset: int | None = None
) -> OnnxGraph:
    """Rewrite an optimized graph into the opset and the operator forms of a format.

    `opset` overrides the format's own. Without it, the opset is changed if the graph needs another: a newer one for
    operators that the format's opset lacks, an older one for operators that the runtime misreads in it. Raises
    ExportError if the graph cannot be written in the opset, UsageError for an unknown format.
    """
    entry = get_format(fmt) if isinstance(fmt, str) else fmt
    newest = _newest_opset(graph, entry)
    if opset is not None:
        if newest < entry.opset and opset > newest:
            name = next(iter(_misread(graph, entry)))
            raise ExportError(f"{entry.title} misreads {name} of opset {opset}; use --opset {newest}")
        return _apply(graph, PassTarget(entry, precision, opset))
    try:
        return _apply(graph, PassTarget(entry, precision, newest))
    except OpsetError as error:
        if entry.passes == "tensorrt":  # its parser reads no newer opset
            raise
        return _apply(graph, PassTarget(entry, precision, error.required))


def _newest_opset(graph: OnnxGraph, entry: Format) -> int:
    """Return the format's opset, or the newest one that the runtime reads correctly."""
    return min((entry.opset, *_misread(graph, entry).values()))


def _misread(graph: OnnxGraph, entry: Format) -> dict[str, int]:
    """Return the operators of the graph in `LAST_OPSETS`."""
    operators = graph.operators
    return {name: opset for name, opset in LAST_OPSETS.get(entry.passes, {}).items() if operators[name]}


def _apply(graph: OnnxGraph, target: PassTarget) -> OnnxGraph:
    rewrites = []
    for item in FORMAT_PASSES[target.format.passes]:
        if item.applies(target):
            options = item.options(target)
            rewrites.append((_record_name(item, options), functools.partial(item.rewrite, **options)))
    return graph.apply_all(rewrites)


def _record_name(item: FormatPass, options: Mapping[str, Any]) -> str:
    """Name of a pass in the graph's history: "downgrade_opset(opset=20)"."""
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{item.rewrite.__name__}({arguments})" if arguments else item.rewrite.__name__
