"""A graph made ready for the lint: functions inlined, shapes inferred, and for each node what its values depend on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.lint.targets import LintTarget
from edgevit.types import Array


@dataclass(frozen=True, slots=True)
class Scene:
    """The nodes of a graph, and what their values depend on; what is in neither set is constant."""

    model: ir.Model
    target: LintTarget
    nodes: tuple[ir.Node, ...]
    data: frozenset[ir.Node]  # values that depend on the values of the graph's inputs
    shapes: frozenset[ir.Node]  # values that depend on shapes alone

    @property
    def opset(self) -> int:
        return self.model.opset_imports.get("", 0)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """What the graph is given; older files list their weights among its inputs too."""
        return tuple(value for value in self.model.graph.inputs if not value.is_initializer())

    def find(self, *op_types: str) -> Iterator[ir.Node]:
        """The nodes of the data path that are one of ONNX's own `op_types`, in order."""
        return (node for node in self.nodes if node in self.data and node.op_type in op_types and not node.domain)


def prepare(graph: OnnxGraph, target: LintTarget) -> Scene:
    """A copy with functions inlined and shapes inferred as far as they go, and what its values depend on."""
    model = graph.model.clone()
    common_passes.InlinePass()(model)
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    data, shapes = set[ir.Node](), set[ir.Node]()
    nodes = tuple(walk(model.graph))
    for node in nodes:
        _sort(node, data, shapes)
    return Scene(model, target, nodes, frozenset(data), frozenset(shapes))


def walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes in order; those of a subgraph before the node that holds it."""
    for node in graph:
        for inner in _subgraphs(node):
            yield from walk(inner)
        yield node


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _sort(node: ir.Node, data: set[ir.Node], shapes: set[ir.Node]) -> None:
    """Puts a node with the data path, with the shapes, or, as a constant, nowhere."""
    inner = [part for subgraph in _subgraphs(node) for part in walk(subgraph)]
    sources = [producer(value) for value in node.inputs]
    # What a subgraph is given counts as data; so does what the whole graph is given.
    from_data = any(is_input(value) for value in node.inputs) or any(source in data for source in (*sources, *inner))
    if from_data and node.op_type not in ("Shape", "Size"):
        data.add(node)
    elif from_data or any(source in shapes for source in (*sources, *inner)):
        shapes.add(node)


def node_name(node: ir.Node) -> str:
    outputs = [str(value.name) for value in node.outputs[:1]]
    return node.name or f"{node.op_type} that makes {', '.join(outputs) or 'nothing'}"


def module_path(node: ir.Node) -> str:
    """The PyTorch module that a node came from, as a dotted path; "" where nothing tells.

    Read from edgevit's own names (`layers.0.fc/Gemm`), from the metadata of PyTorch's exporter, or from the names
    that its older exporter gave (`/layers/layers.0/fc/Gemm`).
    """
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        try:
            names = [str(scope) for scope in ast.literal_eval(scopes)]
        except (ValueError, SyntaxError):
            names = []
        return next((scope for scope in reversed(names[:-1]) if scope), "")
    path = (node.name or "").rpartition("/")[0]
    if not path.startswith("/"):
        return path
    parts: list[str] = []
    for part in path.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def consumers(value: ir.Value | None) -> list[ir.Node]:
    return [] if value is None else [use.node for use in value.uses()]


def is_input(value: ir.Value | None) -> bool:
    """Whether a value is given to a graph or subgraph from outside; initializers are not."""
    return value is not None and value.is_graph_input() and not value.is_initializer()


def held_array(value: ir.Value | None) -> Array | None:
    """The value as an array where the file holds it; None where it is computed, or lies in a file beside it."""
    try:
        return constant(value)
    except (OSError, ValueError, TypeError):
        return None


def computed_input(node: ir.Node, position: int) -> bool:
    value = node.inputs[position] if len(node.inputs) > position else None
    return value is not None and not value.is_initializer() and held_array(value) is None


def has_dtype(value: ir.Value | None, dtype: ir.DataType) -> bool:
    """Whether a value that is no constant has a type."""
    return value is not None and value.dtype == dtype and held_array(value) is None


def static_size(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or not len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None
