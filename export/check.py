"""Validate a finished graph and infer all shapes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.weights import detach_weights
from edgevit.files import first_line


def check(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with all shapes inferred.

    Raises ExportError if it has an operator that ONNX does not define, is not valid ONNX, or if the type or shape of a
    tensor cannot be inferred.
    """
    inferred = graph.apply("infer_shapes", _infer_shapes)
    untyped = [
        value
        for node in inferred.model.graph.all_nodes()
        for value in node.outputs
        if value.dtype is None or value.shape is None
    ]
    _require_known_operators(inferred.model, untyped)
    skeleton, _ = detach_weights(inferred.model)  # the checker serializes the model: two copies of all weights
    try:
        onnx.checker.check_model(ir.to_proto(skeleton), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"the graph is not valid ONNX: {first_line(error)}") from error
    if untyped:
        names = ", ".join(str(value.name) for value in untyped[:5])
        raise ExportError(f"the type or shape of {len(untyped)} tensors is unknown: {names}")
    return inferred


def _require_known_operators(model: ir.Model, untyped: Iterable[ir.Value]) -> None:
    """Raise ExportError if a tensor is untyped because ONNX does not define the operator of its node."""
    for value in untyped:
        node = value.producer()
        assert node is not None
        if not onnx.defs.has(node.op_type, node.domain) and node.op_identifier() not in model.functions:
            raise ExportError(
                f"node {node.name} (output {value.name}) is a {node.op_type} of the domain {node.domain!r}, which ONNX "
                "does not define; export the model with standard operators, without a runtime's own optimizations"
            )


def _infer_shapes(model: ir.Model) -> None:
    common_passes.ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model)
