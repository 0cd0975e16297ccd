"""Run a graph in float64, to see how far its float32 outputs are off.

ONNX Runtime has no float64 kernels for Conv, AveragePool, Erf, Gelu and others; the reference evaluator of the onnx
package has them, in NumPy and slowly. It is used for graphs up to `MAX_MACS` without operators that it runs in Python,
value by value.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs
from edgevit.types import Array, Feeds, Run

MAX_MACS = 2_000_000_000  # for one image: about 10 s
_SLOW = frozenset({"DeformConv", "GridSample", "GRU", "LSTM", "NonMaxSuppression", "Resize", "RNN", "RoiAlign"})


def float64_evaluator(graph: OnnxGraph) -> Run:
    """Return a function that runs `graph` in float64. Raises ExportError if it cannot, or would take minutes."""
    _require_feasible(graph)
    from onnx.reference import ReferenceEvaluator

    converted = graph.apply("float64", _to_float64)
    evaluator = ReferenceEvaluator(ir.to_proto(converted.model))
    names = [spec.name for spec in converted.outputs]

    def run(feeds: Feeds) -> dict[str, Array]:
        doubles = {name: _to_double(array) for name, array in feeds.items()}
        outputs = dict(zip(names, evaluator.run(names, doubles), strict=True))
        rounded = [name for name, array in outputs.items() if array.dtype == np.float32]
        if rounded:
            raise ExportError(f"output {rounded[0]} came back in float32")
        return outputs

    return run


def _require_feasible(graph: OnnxGraph) -> None:
    slow = sorted(_SLOW & graph.operators.keys())
    nested = [node.op_type for node in graph.model.graph if any(map(_is_graph, node.attributes.values()))]
    foreign = [node.op_type for node in graph.model.graph if node.domain not in ("", "ai.onnx")]
    if slow or nested or foreign:
        raise ExportError(f"operator {[*slow, *nested, *foreign][0]} does not run in float64")
    if graph_macs(graph) > MAX_MACS:
        raise ExportError(f"the graph has more than {MAX_MACS / 1e9:.0f} billion MACs")


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _to_float64(model: ir.Model) -> None:
    graph = model.graph
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)  # `dtype` would change the type that copies share
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(_to_double(value.const_value.numpy()), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for node in graph:
        for attribute in list(node.attributes.values()):
            _convert_attribute(node, attribute)


def _convert_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    """Convert a constant of a node, or a cast to float32."""
    name = attribute.name
    if node.op_type == "Cast" and name == "to" and attribute.as_int() == ir.DataType.FLOAT:
        node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE)
    elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
        node.attributes[name] = ir.AttrTensor(name, ir.tensor(_to_double(attribute.as_tensor().numpy())))
    elif node.op_type == "Constant" and attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        del node.attributes[name]
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(attribute.value, np.float64)))


def _to_double(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array
