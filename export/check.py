"""What a finished graph must be: valid ONNX, every tensor typed and shaped, nothing in it that engines choke on."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph

# What a pattern that engines like never leaves behind. Each costs copies or fails to parse somewhere.
HOSTILE = frozenset({
    "ScatterND", "ScatterElements", "Einsum", "Tile", "NonZero", "Loop", "If", "Scan", "Unique", "GatherND",
    "SequenceAt", "SequenceConstruct", "ConstantOfShape", "Range", "Shape", "CastLike",
})  # fmt: skip
LARGEST_RANK = 5


def check(graph: OnnxGraph) -> OnnxGraph:
    """The graph with every shape inferred. Raises ExportError where it is not valid ONNX or a tensor stays untyped."""
    inferred = graph.apply("infer_shapes", _infer)
    proto = ir.to_proto(inferred.model)
    try:
        onnx.checker.check_model(proto, full_check=proto.ByteSize() < 2**31 - 1)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"the graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    untyped = [
        str(value.name)
        for node in inferred.model.graph.all_nodes()
        for value in node.outputs
        if value.dtype is None or value.shape is None
    ]
    if untyped:
        raise ExportError(f"{len(untyped)} tensors have no known type or shape: {', '.join(untyped[:5])}")
    return inferred


def hostile_operators(graph: OnnxGraph) -> dict[str, int]:
    """Operators of the graph that engines choke on, with their number; empty for a clean graph."""
    return {name: count for name, count in graph.operators.items() if name in HOSTILE}


def largest_rank(graph: OnnxGraph) -> int:
    """The largest rank of any tensor in the graph."""
    return max(
        len(value.shape) for node in graph.model.graph.all_nodes() for value in node.outputs if value.shape is not None
    )


def _infer(model: ir.Model) -> None:
    common_passes.ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model)
