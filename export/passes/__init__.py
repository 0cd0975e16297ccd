"""The passes, one rewrite a file, and the order in which a graph takes them on its way to a target."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from edgevit.errors import unknown_name
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.bias_on_heads import bias_on_heads
from edgevit.export.passes.channels_last import channels_last
from edgevit.export.passes.drop_slices import drop_slices
from edgevit.export.passes.fix_reshapes import fix_reshapes
from edgevit.export.passes.fold_affine import fold_affine
from edgevit.export.passes.fold_batchnorm import fold_batchnorm
from edgevit.export.passes.fold_constants import fold_constants
from edgevit.export.passes.fold_shuffle import fold_shuffle
from edgevit.export.passes.gather_first import gather_first
from edgevit.export.passes.lower_attention import lower_attention
from edgevit.export.passes.lower_gelu import lower_gelu
from edgevit.export.passes.lower_group_norm import Form, lower_group_norm
from edgevit.export.passes.lower_opset import OLDEST as OLDEST_OPSET
from edgevit.export.passes.lower_opset import lower_opset
from edgevit.export.passes.merge_slices import merge_slices
from edgevit.export.passes.norm_by_moments import norm_by_moments
from edgevit.export.passes.scale_query import scale_query
from edgevit.export.passes.tidy import tidy
from edgevit.tensors import Precision

__all__ = ["OLDEST_OPSET", "PASSES", "TARGETS", "Target", "lower", "optimise"]

Pass: TypeAlias = Callable[[ir.Model], None]

# The rewrites that serve every target, in order.
PASSES: tuple[tuple[str, Pass], ...] = (
    ("tidy", tidy),
    ("fold_constants", fold_constants),
    ("fix_reshapes", fix_reshapes),
    ("drop_slices", drop_slices),
    ("merge_slices", merge_slices),
    ("fold_batchnorm", fold_batchnorm),
    ("fold_affine", fold_affine),
    ("scale_query", scale_query),
    ("fold_shuffle", fold_shuffle),
    ("gather_first", gather_first),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a graph is for: the opset that it reads, and the forms that it runs best."""

    opset: int
    group_norm: Form
    compiles: bool = False  # into kernels: fewer of the forms of `norm_by_moments`, `channels_last`, `lower_attention`


# By processor time of shiftvit_t, ONNX Runtime is 7 % faster with `instance`, OpenVINO 1 % with `native`. TensorRT up
# to 10.16 at least and TensorRT-RTX 1.7 take GroupNormalization with one group for a normalisation of each channel
# by itself (NVIDIA/TensorRT issue 4756): fewer kernels, and wrong answers. `instance` they compute right.
TARGETS: dict[str, Target] = {
    "onnx": Target(opset=18, group_norm="instance"),
    "ort": Target(opset=20, group_norm="instance"),
    "openvino": Target(opset=21, group_norm="native"),
    "trt": Target(opset=20, group_norm="instance", compiles=True),
    "trt-rtx": Target(opset=20, group_norm="instance", compiles=True),
}


def optimise(graph: OnnxGraph) -> OnnxGraph:
    """The graph after every rewrite that serves all targets."""
    for name, rewrite in PASSES:
        graph = graph.apply(name, rewrite)
    return graph


def lower(graph: OnnxGraph, target: str, *, precision: Precision = "fp32", opset: int | None = None) -> OnnxGraph:
    """The graph in the opset and the forms of `target`, or in the opset asked for. Raises ExportError where the
    opset cannot say it."""
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    wanted = TARGETS[target].opset if opset is None else opset
    if TARGETS[target].compiles:
        graph = _for_kernels(graph, precision)
    form: Form = TARGETS[target].group_norm if wanted >= 21 else "instance"
    graph = graph.apply(f"lower_group_norm:{form}", functools.partial(lower_group_norm, form=form))
    if wanted < 20:
        graph = graph.apply("lower_gelu", lower_gelu)
    return graph.apply(f"lower_opset:{wanted}", functools.partial(lower_opset, opset=wanted))


def _for_kernels(graph: OnnxGraph, precision: Precision) -> OnnxGraph:
    """The graph in the forms of which TensorRT's compiler makes few kernels. What int8 layers read stays as it is."""
    floating = precision != "int8"
    graph = graph.apply("norm_by_moments", functools.partial(norm_by_moments, turned=floating))
    if floating:
        graph = graph.apply("channels_last", channels_last).apply("bias_on_heads", bias_on_heads)
    return graph.apply("lower_attention", lower_attention) if precision == "fp16" else graph
