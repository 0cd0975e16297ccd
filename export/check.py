"""Validate a finished graph and infer all shapes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.weights import detach_weights
from edgevit.files import first_line


def check(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with all shapes inferred.

    Raises ExportError if it is not valid ONNX or if the type or shape of a tensor cannot be inferred.
    """
    inferred = graph.apply("infer_shapes", _infer_shapes)
    skeleton, _ = detach_weights(inferred.model)  # the checker serializes the model: two copies of all weights
    try:
        onnx.checker.check_model(ir.to_proto(skeleton), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"the graph is not valid ONNX: {first_line(error)}") from error
    untyped = [
        str(value.name)
        for node in inferred.model.graph.all_nodes()
        for value in node.outputs
        if value.dtype is None or value.shape is None
    ]
    if untyped:
        raise ExportError(f"the type or shape of {len(untyped)} tensors is unknown: {', '.join(untyped[:5])}")
    return inferred


def _infer_shapes(model: ir.Model) -> None:
    common_passes.ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model)
