"""Run an ONNX graph in ONNX Runtime without optimizations, as a reference."""

from __future__ import annotations

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.group_norm_by_rows import group_norm_by_rows, has_large_group_norm
from edgevit.export.quantization.emulation import emulate_fp16
from edgevit.export.weights import serialize_without_weights
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxFile, OnnxRuntimeEngine
from edgevit.types import Run


def graph_evaluator(graph: OnnxGraph, *, threads: int | None = None) -> Run:
    """Return a function that runs `graph` node by node as written, without ONNX Runtime's own rewrites.

    Large GroupNorms are the exception: ONNX Runtime's sum of so many values is off by more than the tolerance of fp32.
    """
    if has_large_group_norm(graph.model):
        graph = graph.apply("group_norm_by_rows", group_norm_by_rows)
    content, weights = serialize_without_weights(graph.model)
    options = BuildOptions(threads=threads)
    engine = OnnxRuntimeEngine(OnnxFile().load(), content, options, optimized=False, weights=weights)
    return engine.run


def deployed_evaluator(graph: OnnxGraph, *, threads: int | None = None) -> Run:
    """Return a function that runs `graph` as a device would: with fp16 tensors rounded to fp16.

    ONNX Runtime computes fp16 nodes in fp32 on a CPU, which hides overflows. Nodes in int8 and fp32 stay as they are.
    """
    return graph_evaluator(emulate_fp16(graph), threads=threads)
