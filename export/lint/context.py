"""LintContext: shapes, data path and shape path of a graph, and queries on its nodes and values."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.lint.targets import LintTarget
from edgevit.files import first_line
from edgevit.node_names import module_of_name
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class LintContext:
    """A graph with functions inlined and shapes inferred.

    Each node is in the data path, in the shape path, or in neither, if its outputs are constant.
    """

    model: ir.Model
    target: LintTarget
    nodes: tuple[ir.Node, ...]
    data: frozenset[ir.Node]  # outputs depend on the values of the graph's inputs
    shapes: frozenset[ir.Node]  # outputs depend on shapes only

    @property
    def opset(self) -> int:
        return self.model.opset_imports.get("", 0)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The graph's inputs without its weights, which older files list as inputs too."""
        return tuple(value for value in self.model.graph.inputs if not value.is_initializer())

    def find(self, *op_types: str) -> Iterator[ir.Node]:
        """Iterate over the nodes of the data path whose operator is one of `op_types` in the default domain."""
        return (node for node in self.nodes if node in self.data and node.op_type in op_types and not node.domain)


def build_context(graph: OnnxGraph, target: LintTarget) -> LintContext:
    """Inline functions and infer shapes in a copy of the graph, and classify its nodes.

    Raises UsageError if that fails.
    """
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it logs tracebacks of failed shape inference
    try:
        model = graph.model.clone()
        common_passes.InlinePass()(model)
        _require_inputs(model)
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    except UsageError:
        raise
    except Exception as error:  # a file from elsewhere; onnx_ir raises several classes
        raise UsageError(f"the graph cannot be analyzed: {first_line(error)}; check it with onnx.checker") from error
    data, shapes = set[ir.Node](), set[ir.Node]()
    nodes = tuple(walk(model.graph))
    for node in nodes:
        _classify(node, data, shapes)
    return LintContext(model, target, nodes, frozenset(data), frozenset(shapes))


def walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """Iterate over all nodes in order; nodes of a subgraph come before the node that contains it."""
    for node in graph:
        for inner in _subgraphs(node):
            yield from walk(inner)
        yield node


def _require_inputs(model: ir.Model) -> None:
    """Raise UsageError if a node lacks a required input, as after inlining a call with too few inputs."""
    opset = model.opset_imports.get("", 0)
    for node in walk(model.graph):
        if node.domain or not onnx.defs.has(node.op_type, opset):
            continue
        for parameter, value in zip(onnx.defs.get_schema(node.op_type, opset).inputs, node.inputs, strict=False):
            if value is None and parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                raise UsageError(f"{node_name(node)} lacks its required input {parameter.name}; export the model again")


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _classify(node: ir.Node, data: set[ir.Node], shapes: set[ir.Node]) -> None:
    """Add a node to the data path, to the shape path, or, if its outputs are constant, to neither."""
    inner = [part for subgraph in _subgraphs(node) for part in walk(subgraph)]
    sources = [producer(value) for value in node.inputs]
    # Inputs of a subgraph count as data, like inputs of the graph.
    from_data = any(is_input(value) for value in node.inputs) or any(source in data for source in (*sources, *inner))
    if from_data and node.op_type not in ("Shape", "Size"):
        data.add(node)
    elif from_data or any(source in shapes for source in (*sources, *inner)):
        shapes.add(node)


def node_name(node: ir.Node) -> str:
    """Return the name of a node; if it has none, its operator and first output."""
    outputs = [str(value.name) for value in node.outputs[:1]]
    return node.name or f"{node.op_type} producing {', '.join(outputs) or 'nothing'}"


def module_path(node: ir.Node) -> str:
    """Return the dotted path of the PyTorch module that a node came from; "" if unknown.

    Sources: edgevit's node names (`layers.0.fc/Gemm`), metadata of PyTorch's exporter, and node names of the older
    TorchScript exporter (`/layers/layers.0/fc/Gemm`).
    """
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        try:
            names = [str(scope) for scope in ast.literal_eval(scopes)]
        except (ValueError, SyntaxError):
            names = []
        return next((scope for scope in reversed(names[:-1]) if scope), "")
    path = module_of_name(node.name or "")
    if not path.startswith("/"):
        return path
    parts: list[str] = []
    for part in path.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def producer(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes a value."""
    return None if value is None else value.producer()


def consumers(value: ir.Value | None) -> list[ir.Node]:
    """Return the nodes that read a value."""
    return [] if value is None else [use.node for use in value.uses()]


def is_input(value: ir.Value | None) -> bool:
    """Whether a value is an input of a graph or subgraph and not an initializer."""
    return value is not None and value.is_graph_input() and not value.is_initializer()


def stored_array(value: ir.Value | None) -> Array | None:
    """Return the value of a constant; None if it is computed or its external data cannot be read."""
    try:
        return constant(value)
    except (OSError, ValueError, TypeError):
        return None


def has_computed_input(node: ir.Node, position: int) -> bool:
    """Whether the node has an input at `position` and it is not a constant."""
    value = node.inputs[position] if len(node.inputs) > position else None
    return value is not None and not value.is_initializer() and stored_array(value) is None


def has_dtype(value: ir.Value | None, dtype: ir.DataType) -> bool:
    """Whether a value has an element type and is not a constant."""
    return value is not None and value.dtype == dtype and stored_array(value) is None
