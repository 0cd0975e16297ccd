"""Write GroupNormalization as InstanceNormalization, which every engine computes correctly.

GroupNormalization of opset 21 normalizes over the channels of a group and all pixels, then applies a scale and a bias
per channel. Older runtimes do not support it. NVIDIA's parsers (TensorRT up to 10.16, TensorRT-RTX 1.7) misread it, and
also that of opset 18, if there is one group: they normalize each channel separately.

The replacement is equivalent: Reshape (N, C, H, W) to (N, groups, C/groups * H * W), InstanceNormalization, Reshape
back, then Mul and Add, which are omitted if they have no effect.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.ir_helpers import (
    constant,
    initializer,
    insert,
    int64_initializer,
    numpy_dtype,
    remove_unused,
    replace_value,
)


def decompose_group_norm(model: ir.Model) -> None:
    """Replace each GroupNormalization. Raises ExportError if its input has a dynamic axis besides the batch."""
    for node in list(model.graph):
        if node.op_type == "GroupNormalization" and not node.domain:
            normalized = _instance_norm(node, model.graph)
            replace_value(node.outputs[0], scale_and_shift(node, normalized, model.graph))
    remove_unused(model)


def scale_and_shift(node: ir.Node, normalized: ir.Value, graph: ir.Graph) -> ir.Value:
    """Apply the scale and bias of a GroupNormalization to an already normalized tensor (N, C, ...)."""
    column = [-1, *([1] * (len(_reshape_target(node)) - 2))]  # (C, 1, 1)
    for op_type, index, neutral in (("Mul", 1, 1), ("Add", 2, 0)):
        values = constant(node.inputs[index])
        if values is not None and np.all(values == neutral):
            continue
        applied = ir.node(op_type, [normalized, _column(node, graph, index, column)], name=f"{node.name}_{op_type}")
        normalized = insert(applied, before=node, graph=graph, like=normalized, shape=normalized.shape)
    return normalized


def _column(node: ir.Node, graph: ir.Graph, index: int, column: list[int]) -> ir.Value:
    values = constant(node.inputs[index])
    if values is not None:
        return initializer(graph, f"{node.name}.{'scale' if index == 1 else 'bias'}", values.reshape(column))
    reshaped = ir.node("Reshape", [node.inputs[index], int64_initializer(graph, f"{node.name}.column", column)])
    graph.insert_before(node, reshaped)
    return reshaped.outputs[0]


def _instance_norm(node: ir.Node, graph: ir.Graph) -> ir.Value:
    """Normalize the node's input without scale and bias; return it in its original shape."""
    groups = node.attributes.get_int("num_groups")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    shape = _reshape_target(node)
    flat = int64_initializer(graph, f"{node.name}.groups", [0, groups, -1])
    back = int64_initializer(graph, f"{node.name}.shape", list(shape))
    ones, zeros = _unit_scale_and_bias(node, graph, groups)
    flatten = ir.node("Reshape", [node.inputs[0], flat], name=f"{node.name}_flatten")
    normalize = ir.node(
        "InstanceNormalization",
        [flatten.outputs[0], ones, zeros],
        {"epsilon": epsilon},
        name=f"{node.name}_normalize",
    )
    unflatten = ir.node("Reshape", [normalize.outputs[0], back], name=f"{node.name}_unflatten")
    graph.insert_before(node, [flatten, normalize])
    return insert(unflatten, before=node, graph=graph, like=node.outputs[0], shape=node.outputs[0].shape)


def _unit_scale_and_bias(node: ir.Node, graph: ir.Graph, groups: int) -> tuple[ir.Value, ir.Value]:
    dtype = numpy_dtype(node.inputs[0])
    return (
        initializer(graph, f"{node.name}.ones", np.ones(groups, dtype)),
        initializer(graph, f"{node.name}.zeros", np.zeros(groups, dtype)),
    )


def is_single_group_norm(node: ir.Node, *, more_than: int) -> bool:
    """Return whether a node normalizes (N, C, H, W) in one group of more than `more_than` known values."""
    if node.op_type != "GroupNormalization" or node.domain or node.attributes.get_int("num_groups") != 1:
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(shape) != 4:
        return False
    return math.prod(size if isinstance(size, int) else 0 for size in shape[1:]) > more_than


def _reshape_target(node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a node's input for a Reshape, -1 for a dynamic batch; ExportError for other dynamic axes."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    known = [dim if isinstance(dim, int) else -1 for dim in shape] if shape is not None else [-1, -1]
    if -1 in known[1:]:
        raise ExportError(f"{node.name}: only the batch may be dynamic, but its input has the shape {shape}")
    return tuple(known)
