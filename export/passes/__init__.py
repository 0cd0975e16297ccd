"""The passes, one rewrite a file, and the order in which a graph takes them on its way to a target."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.canonicalize_attention import canonicalize_attention
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.decompose_gelu import decompose_gelu
from edgevit.export.passes.decompose_group_norm import decompose_group_norm
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
from edgevit.formats import Format, GroupNormForm, get_format
from edgevit.types import Precision

__all__ = ["OLDEST_OPSET", "PASSES", "optimize", "specialize"]

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


def optimize(graph: OnnxGraph) -> OnnxGraph:
    """Apply the passes that serve every format."""
    for name, rewrite in PASSES:
        graph = graph.apply(name, rewrite)
    return graph


def specialize(
    graph: OnnxGraph, fmt: str | Format, *, precision: Precision = "fp32", opset: int | None = None
) -> OnnxGraph:
    """Rewrite an optimized graph into the opset and the operator forms of a format.

    `opset` overrides the format's own. Raises ExportError if the graph cannot be written in it, UsageError for an
    unknown format.
    """
    target = get_format(fmt) if isinstance(fmt, str) else fmt
    wanted = target.opset if opset is None else opset
    if target.passes == "tensorrt":
        graph = _for_kernels(graph, precision)
    form: GroupNormForm = target.group_norm if wanted >= 21 else "instance"
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
