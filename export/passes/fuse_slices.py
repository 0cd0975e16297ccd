"""Merge consecutive Slice nodes on different axes.

Slice(Slice(x, axes A), axes B) = Slice(x, axes A and B) if A and B are disjoint. PyTorch exports one node per axis:
`x[:, :8, :, 1:]` becomes two nodes, and the shift of a feature map nine nodes instead of five.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, int64_initializer, remove_unused, replace_value
from edgevit.types import Array


def fuse_slices(model: ir.Model) -> None:
    """Merge each Slice into the Slice that produces its input; the latter stays if it has other consumers."""
    for node in list(model.graph):
        if node.op_type == "Slice":
            _merge_into_producer(node, model.graph)
    remove_unused(model)


def _merge_into_producer(outer: ir.Node, graph: ir.Graph) -> None:
    inner = outer.inputs[0].producer() if outer.inputs[0] is not None else None
    if inner is None or inner.op_type != "Slice":
        return
    first, second = _parameters(inner), _parameters(outer)
    if first is None or second is None or set(first[2].tolist()) & set(second[2].tolist()):
        return
    inputs = [
        int64_initializer(graph, f"{outer.name}.{name}", np.concatenate(pair).tolist())  # one type for all
        for name, pair in zip(("starts", "ends", "axes", "steps"), zip(first, second, strict=True), strict=True)
    ]
    merged = ir.node("Slice", [inner.inputs[0], *inputs], name=outer.name)
    graph.insert_before(outer, merged)
    replace_value(outer.outputs[0], merged.outputs[0])


def _parameters(node: ir.Node) -> tuple[Array, Array, Array, Array] | None:
    """Return starts, ends, nonnegative axes and steps; None if any of them is not constant."""
    starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
    if starts is None or ends is None:
        return None
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    axes = _optional(node, 3, np.arange(len(starts)))
    steps = _optional(node, 4, np.ones(len(starts), np.int64))
    if axes is None or steps is None or (rank is None and axes.min() < 0):
        return None
    return starts, ends, np.where(axes < 0, axes + (rank or 0), axes), steps


def _optional(node: ir.Node, index: int, default: Array) -> Array | None:
    if len(node.inputs) <= index or node.inputs[index] is None:
        return default
    return constant(node.inputs[index])
