"""Cut a part out of a graph, or add inner tensors to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import remove_unused
from edgevit.types import Shape


def with_outputs(graph: OnnxGraph, names: Iterable[str]) -> OnnxGraph:
    """Return the graph with the named tensors as outputs, after its own; names that no node computes are left out."""

    def add(model: ir.Model) -> None:
        values = _computed(model)
        own = {output.name for output in model.graph.outputs}
        model.graph.outputs.extend(values[name] for name in names if name in values and name not in own)

    return graph.apply("with_outputs", add)


def extract(
    graph: OnnxGraph, inputs: Iterable[str], outputs: Sequence[str], *, shapes: Mapping[str, Shape] | None = None
) -> OnnxGraph:
    """Return the part of the graph that computes `outputs` from `inputs`, both tensors of the graph.

    `shapes` gives tensors a static shape. The part has only those inputs that it reads: other inputs of the graph too,
    if the named ones do not suffice.
    """

    def cut(model: ir.Model) -> None:
        values = {str(value.name): value for value in model.graph.inputs} | _computed(model)
        results = [values[name] for name in outputs]
        model.graph.outputs.clear()  # onnx_ir replaces no uses of a graph output
        for name in inputs:
            _make_input(model.graph, values[name])
        model.graph.outputs.extend(results)
        remove_unused(model)
        unread = [value for value in model.graph.inputs if not value.uses() and not value.is_graph_output()]
        for value in unread:
            model.graph.inputs.remove(value)
        for value in (*model.graph.inputs, *model.graph.outputs):
            if shapes and value.name in shapes:
                value.shape = ir.Shape(shapes[str(value.name)])

    return graph.apply("extract", cut)


def live_values(graph: OnnxGraph, position: int) -> tuple[str, ...]:
    """Return the tensors that the nodes from `position` on read from nodes before it, and from the graph's inputs."""
    nodes = list(graph.model.graph)
    after = set(nodes[position:])
    before = (*graph.model.graph.inputs, *(value for node in nodes[:position] for value in node.outputs))
    return tuple(
        str(value.name)
        for value in before
        if not _is_constant(value) and (value.is_graph_output() or any(use.node in after for use in value.uses()))
    )


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() or ir.convenience.get_const_tensor(value) is not None


def _computed(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for node in model.graph for value in node.outputs if value.name}


def _make_input(graph: ir.Graph, value: ir.Value) -> None:
    """Let the readers of a computed value read an input of the graph instead, with the value's name."""
    if value.is_graph_input():
        return
    name = str(value.name)
    new = ir.Value(name=name, shape=value.shape, type=value.type)
    value.name = f"{name}_computed"
    value.replace_all_uses_with(new)
    graph.inputs.append(new)
