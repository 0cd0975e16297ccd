"""The passes, one rewrite a file, and the order in which a graph takes them on its way to a target."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from edgevit.errors import unknown_name
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.canonicalize_attention import canonicalize_attention
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.decompose_gelu import decompose_gelu
from edgevit.export.passes.decompose_group_norm import Form, decompose_group_norm
from edgevit.export.passes.downgrade_opset import OLDEST as OLDEST_OPSET
from edgevit.export.passes.downgrade_opset import downgrade_opset
from edgevit.export.passes.eliminate_slices import eliminate_slices
from edgevit.export.passes.fold_attention_bias import fold_attention_bias
from edgevit.export.passes.fold_constants import fold_constants
from edgevit.export.passes.freeze_reshape_shapes import freeze_reshape_shapes
from edgevit.export.passes.fuse_affine import fuse_affine
from edgevit.export.passes.fuse_batchnorm import fuse_batchnorm
from edgevit.export.passes.fuse_channel_shuffle import fuse_channel_shuffle
from edgevit.export.passes.fuse_slices import fuse_slices
from edgevit.export.passes.group_norm_from_moments import group_norm_from_moments
from edgevit.export.passes.pointwise_conv_to_matmul import pointwise_conv_to_matmul
from edgevit.export.passes.push_gather_through_concat import push_gather_through_concat
from edgevit.export.passes.push_scale_to_query import push_scale_to_query
from edgevit.types import Precision

__all__ = ["OLDEST_OPSET", "PASSES", "TARGETS", "Target", "lower", "optimise"]

Pass: TypeAlias = Callable[[ir.Model], None]

# The rewrites that serve every target, in order.
PASSES: tuple[tuple[str, Pass], ...] = (
    ("cleanup", cleanup),
    ("fold_constants", fold_constants),
    ("freeze_reshape_shapes", freeze_reshape_shapes),
    ("eliminate_slices", eliminate_slices),
    ("fuse_slices", fuse_slices),
    ("fuse_batchnorm", fuse_batchnorm),
    ("fuse_affine", fuse_affine),
    ("push_scale_to_query", push_scale_to_query),
    ("fuse_channel_shuffle", fuse_channel_shuffle),
    ("push_gather_through_concat", push_gather_through_concat),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a graph is for: the opset that it reads, and the forms that it runs best."""

    opset: int
    group_norm: Form
    # Into kernels: fewer of the forms of `group_norm_from_moments`, `pointwise_conv_to_matmul` and
    # `canonicalize_attention`.
    compiles: bool = False


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
    graph = graph.apply(f"decompose_group_norm:{form}", functools.partial(decompose_group_norm, form=form))
    if wanted < 20:
        graph = graph.apply("decompose_gelu", decompose_gelu)
    return graph.apply(f"downgrade_opset:{wanted}", functools.partial(downgrade_opset, opset=wanted))


def _for_kernels(graph: OnnxGraph, precision: Precision) -> OnnxGraph:
    """The graph in the forms of which TensorRT's compiler makes few kernels. What int8 layers read stays as it is."""
    floating = precision != "int8"
    graph = graph.apply("group_norm_from_moments", functools.partial(group_norm_from_moments, turned=floating))
    if floating:
        graph = graph.apply("pointwise_conv_to_matmul", pointwise_conv_to_matmul).apply(
            "fold_attention_bias", fold_attention_bias
        )
    return graph.apply("canonicalize_attention", canonicalize_attention) if precision == "fp16" else graph
