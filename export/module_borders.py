"""Find the tensors of a graph at the borders of PyTorch modules, by the names of its nodes.

A node is named `<module path>/<operator>` (see `capture`), and the passes keep these names. A tensor that a node inside
a module computes and a node outside reads is an output of the module; the reverse is an input. A node that a pass or a
converter made without a module belongs to the module that contains both its producers and its readers. The quantization
of a layer's input belongs to the layer: it goes if the layer stays in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import module_of
from edgevit.export.operators import LAYERS
from edgevit.node_names import is_in_module

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_NUMBERS = _FLOATS | {
    ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL,
}  # fmt: skip
_QUANTIZES = frozenset({"QuantizeLinear", "DequantizeLinear"})


class ModuleBorders:
    """The modules of a graph and the tensors at their borders. Nodes inside branches and loops count as their node."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph.model.graph
        self.nodes = tuple(self._graph)
        self._modules = _modules(self.nodes)
        self._variable = _depending_on_inputs(self._graph)

    @cached_property
    def paths(self) -> frozenset[str]:
        """The modules with an operator of their own or in a submodule."""
        return frozenset(path for own in set(self._modules.values()) for path in _with_parents(own))

    def module_of(self, node: ir.Node) -> str:
        """Return the path of the module that a node belongs to; "" for the whole model."""
        return self._modules[node]

    def outputs(self, path: str) -> tuple[str, ...]:
        """Return the floating-point outputs of a module, in the order in which the graph computes them."""
        inside = self._inside(path)
        return tuple(
            str(value.name)
            for node in self.nodes
            if node in inside
            for value in node.outputs
            if self._is_tensor(value) and (value.is_graph_output() or any(u.node not in inside for u in value.uses()))
        )

    def inputs(self, paths: Iterable[str], outputs: Iterable[str]) -> tuple[str, ...]:
        """Return the tensors from outside some modules that the named outputs are computed from inside them."""
        inside, wanted = {node for path in paths for node in self._inside(path)}, set(outputs)
        found: dict[str, None] = {}
        needed = {value for node in inside for value in node.outputs if value.name in wanted}
        for node in reversed(self.nodes):
            if node not in inside or not needed & set(node.outputs):
                continue
            for value in node.inputs:
                if value is None or value not in self._variable:
                    continue
                if value.producer() in inside or value.dtype not in _NUMBERS:  # a sequence is no input
                    needed.add(value)
                else:
                    found[str(value.name)] = None
        return tuple(reversed(found))

    def operators(self, path: str) -> tuple[str, ...]:
        """Return the names of a module's own nodes that compute on its inputs, without its submodules'."""
        return tuple(
            str(node.name) for node in self.nodes if self._modules[node] == path and self._variable & set(node.outputs)
        )

    def _inside(self, path: str) -> AbstractSet[ir.Node]:
        return {node for node in self.nodes if is_in_module(self._modules[node], path)}

    def _is_tensor(self, value: ir.Value) -> bool:
        return value in self._variable and value.dtype in _FLOATS


def common_module(paths: Iterable[str]) -> str:
    """Return the innermost module that contains all paths."""
    parts = [path.split(".") for path in paths]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _modules(nodes: tuple[ir.Node, ...]) -> dict[ir.Node, str]:
    """Return the module of each node; a node without one gets that of its neighbors."""
    found = {node: module_of(node) for node in nodes}
    unnamed = {node for node in nodes if "/" not in str(node.name)}
    for node in nodes:
        if node in unnamed:
            neighbors = [found[other] for other in _neighbors(node) if other in found and other not in unnamed]
            found[node] = common_module(neighbors)
            unnamed.discard(node)
    for node in nodes:
        if node.op_type in _QUANTIZES and (readers := _quantized_layers(node)):
            found[node] = common_module(found[reader] for reader in readers)
    return found


def _quantized_layers(node: ir.Node) -> list[ir.Node]:
    """Return the layers that read a quantized tensor; none if something else reads it too."""
    readers = [use.node for value in node.outputs for use in value.uses()]
    if node.op_type == "QuantizeLinear":
        readers = [use.node for reader in readers for value in reader.outputs for use in value.uses()]
    return readers if all(reader.op_type in LAYERS for reader in readers) else []


def _neighbors(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
    for value in node.outputs:
        yield from (use.node for use in value.uses())


def _depending_on_inputs(graph: ir.Graph) -> AbstractSet[ir.Value]:
    """Return the values that depend on the inputs of the graph, inputs included."""
    found: set[ir.Value] = set(graph.inputs)
    for node in graph:
        read = list(node.inputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                read += [value for inner in attribute.as_graph().all_nodes() for value in inner.inputs]
        if any(value in found for value in read if value is not None):
            found.update(node.outputs)
    return found


def _with_parents(path: str) -> Iterator[str]:
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path
