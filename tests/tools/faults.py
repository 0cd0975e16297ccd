"""Faults that are planted in exported graphs: the mistakes that exporters, passes and runtimes make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, initializer, remove_unused
from edgevit.node_names import module_of_name
from edgevit.types import Array

Rewrite: TypeAlias = Callable[[ir.Model, ir.Node], bool]  # False: the node does not allow this fault


@dataclass(frozen=True, slots=True)
class Plant:
    """A fault at one node."""

    fault: str
    node: str

    @property
    def module(self) -> str:
        """The path of the PyTorch module that the node came from."""
        return module_of_name(self.node)


def find_plants(graph: OnnxGraph) -> list[Plant]:
    """Return every fault at every node that allows it."""
    found = []
    for fault, rewrite in FAULTS.items():
        model = graph.model.clone()
        names = [str(node.name) for node in model.graph]
        for name, node in zip(names, list(model.graph), strict=True):
            if "/" in name and rewrite(model, node):
                found.append(Plant(fault, name))
    return found


def plant(graph: OnnxGraph, planted: Plant, fault: Rewrite | None = None) -> OnnxGraph:
    """Return the graph with the fault, or with another one at the same node."""

    def rewrite(model: ir.Model) -> None:
        (node,) = [node for node in model.graph if node.name == planted.node]
        assert (fault or FAULTS[planted.fault])(model, node)
        remove_unused(model)

    return graph.apply("plant", rewrite)


def scale_weight(factor: float) -> Rewrite:
    """Return a fault that multiplies the weight of a layer."""
    return change_weight(lambda weight: weight * np.float32(factor))


def change_weight(change: Callable[[Array], Array | None]) -> Rewrite:
    """Return a fault that replaces the weight of a layer by `change(weight)`, unless that is None."""

    def rewrite(model: ir.Model, node: ir.Node) -> bool:
        weight = constant(node.inputs[1]) if node.op_type in ("Conv", "MatMul", "Gemm") else None
        changed = None if weight is None or weight.ndim < 2 else change(weight)
        if changed is None:
            return False
        node.replace_input_with(1, initializer(model.graph, "planted", np.ascontiguousarray(changed)))
        return True

    return rewrite


def _transpose(weight: Array) -> Array | None:
    rows, columns, *kernel = weight.shape
    square = rows == columns > 1 and all(size == 1 for size in kernel)
    return weight.swapaxes(0, 1) if square else None


def _drop_residual(_: ir.Model, node: ir.Node) -> bool:
    """Keep the branch of a residual sum: the input that is computed last."""
    if node.op_type != "Add" or any(constant(value) is not None for value in node.inputs):
        return False
    first, second = node.inputs
    if first is None or second is None or first.shape != second.shape or first is second:
        return False
    graph = node.graph
    order = {each: index for index, each in enumerate(graph)} if graph is not None else {}
    positions = [order.get(value.producer(), -1) for value in (first, second)]  # type: ignore[arg-type]
    skipped = int(positions[0] > positions[1])
    zero = initializer(graph, "planted", np.zeros(1, np.float32))  # type: ignore[arg-type]
    node.replace_input_with(skipped, zero)
    return True


def _attribute(op_type: str, name: str, change: Callable[[ir.Node], ir.Attr | None]) -> Rewrite:
    def rewrite(_: ir.Model, node: ir.Node) -> bool:
        changed = change(node) if node.op_type == op_type else None
        if changed is None:
            return False
        node.attributes[name] = changed
        return True

    return rewrite


def _tanh(node: ir.Node) -> ir.Attr | None:
    return ir.AttrString("approximate", "tanh") if node.attributes.get_string("approximate", "none") == "none" else None


def _epsilon(node: ir.Node) -> ir.Attr | None:
    own = node.attributes.get_float("epsilon", 1e-5)
    return ir.AttrFloat32("epsilon", 10 * own if own < 5e-6 else own / 10)


def _is_linear(node: ir.Node) -> bool:
    return node.attributes.get_string("mode", "nearest") == "linear"


def _align_corners(node: ir.Node) -> ir.Attr | None:
    mode = "coordinate_transformation_mode"
    own = node.attributes.get_string(mode, "half_pixel")
    return (
        ir.AttrString(mode, "half_pixel" if own == "align_corners" else "align_corners") if _is_linear(node) else None
    )


def _nearest(node: ir.Node) -> ir.Attr | None:
    return ir.AttrString("mode", "nearest") if _is_linear(node) else None


def _softmax_axis(node: ir.Node) -> ir.Attr | None:
    shape = node.outputs[0].shape
    if shape is None or len(shape) < 2:
        return None
    axis = node.attributes.get_int("axis", -1) % len(shape)
    return ir.AttrInt64("axis", len(shape) - 2 if axis == len(shape) - 1 else len(shape) - 1)


FAULTS: Mapping[str, Rewrite] = {
    "a transposed weight": change_weight(_transpose),
    "a dropped residual": _drop_residual,
    "GELU by tanh": _attribute("Gelu", "approximate", _tanh),
    "epsilon off by ten": _attribute("LayerNormalization", "epsilon", _epsilon),
    "align_corners flipped": _attribute("Resize", "coordinate_transformation_mode", _align_corners),
    "nearest for bilinear": _attribute("Resize", "mode", _nearest),
    "a weight 1 % too large": scale_weight(1.01),
    "a sign": scale_weight(-1.0),
    "another axis of softmax": _attribute("Softmax", "axis", _softmax_axis),
}
