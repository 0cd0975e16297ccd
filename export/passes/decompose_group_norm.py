"""GroupNormalization-21 in a form that every engine computes right.

The operator normalises over the channels of a group and all pixels, then applies a scale and a bias a channel. Older
runtimes lack it, and NVIDIA's parsers (TensorRT up to 10.16, TensorRT-RTX 1.7) misread it, and opset 18's operator of
the same name, where there is one group: they normalise each channel by itself. The form `instance` is equal to it:
(N, C, H, W) -> (N, groups, C/groups * H * W), InstanceNormalization, and back, and then Mul and Add, which are left out
where they would do nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    initializer,
    int64_initializer,
    remove_unused,
    replace_value,
)
from edgevit.formats import GroupNormForm


def decompose_group_norm(model: ir.Model, form: GroupNormForm) -> None:
    if form == "native":
        return
    for node in list(model.graph):
        if node.op_type == "GroupNormalization" and not node.domain:
            normalised = _instance(node, model.graph)
            replace_value(node.outputs[0], scale_and_shift(node, normalised, model.graph))
    remove_unused(model)


def scale_and_shift(node: ir.Node, normalised: ir.Value, graph: ir.Graph) -> ir.Value:
    """The norm's scale and bias applied to (N, C, …) that is normalised already."""
    column = [-1, *([1] * (len(static_shape(node)) - 2))]  # (C, 1, 1)
    for op_type, index, neutral in (("Mul", 1, 1), ("Add", 2, 0)):
        values = constant(node.inputs[index])
        if values is not None and np.all(values == neutral):
            continue
        applied = ir.node(op_type, [normalised, _column(node, graph, index, column)], name=f"{node.name}_{op_type}")
        graph.insert_before(node, applied)
        copy_shape_and_type(applied.outputs[0], normalised)
        normalised = applied.outputs[0]
    return normalised


def _column(node: ir.Node, graph: ir.Graph, index: int, column: list[int]) -> ir.Value:
    values = constant(node.inputs[index])
    if values is not None:
        return initializer(graph, f"{node.name}.{'scale' if index == 1 else 'bias'}", values.reshape(column))
    reshaped = ir.node("Reshape", [node.inputs[index], int64_initializer(graph, f"{node.name}.column", column)])
    graph.insert_before(node, reshaped)
    return reshaped.outputs[0]


def _instance(node: ir.Node, graph: ir.Graph) -> ir.Value:
    groups = node.attributes.get_int("num_groups")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    shape = static_shape(node)
    flat = int64_initializer(graph, f"{node.name}.groups", [0, groups, -1])
    back = int64_initializer(graph, f"{node.name}.shape", list(shape))
    ones, zeros = _neutral(node, graph, groups)
    nodes = [ir.node("Reshape", [node.inputs[0], flat], name=f"{node.name}_flatten")]
    nodes.append(
        ir.node(
            "InstanceNormalization",
            [nodes[0].outputs[0], ones, zeros],
            {"epsilon": epsilon},
            name=f"{node.name}_normalise",
        )
    )
    nodes.append(ir.node("Reshape", [nodes[1].outputs[0], back], name=f"{node.name}_unflatten"))
    return _insert(nodes, node, graph)


def _neutral(node: ir.Node, graph: ir.Graph, groups: int) -> tuple[ir.Value, ir.Value]:
    dtype = node.inputs[0].dtype.numpy() if node.inputs[0] is not None and node.inputs[0].dtype else np.float32
    return (
        initializer(graph, f"{node.name}.ones", np.ones(groups, dtype)),
        initializer(graph, f"{node.name}.zeros", np.zeros(groups, dtype)),
    )


def _insert(nodes: list[ir.Node], before: ir.Node, graph: ir.Graph) -> ir.Value:
    for node in nodes:
        graph.insert_before(before, node)
    result = nodes[-1].outputs[0]
    copy_shape_and_type(result, before.outputs[0])
    return result


def static_shape(node: ir.Node) -> tuple[int, ...]:
    """The input's shape, with -1 for a dynamic batch."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    known = [dim if isinstance(dim, int) else -1 for dim in shape] if shape is not None else [-1, -1]
    if -1 in known[1:]:
        raise ExportError(f"{node.name}: only the batch may be dynamic, and the shape is {shape}")
    return tuple(known)
