"""GroupNormalization-21 in a form that every engine computes right.

The operator normalises over the channels of a group and all pixels, then applies a scale and a bias a channel. Older
runtimes lack it, and NVIDIA's parsers (TensorRT up to 10.16, TensorRT-RTX 1.7) misread it, and opset 18's operator of
the same name, where there is one group: they normalise each channel by itself. Two forms are equal to it:

* `instance`: (N, C, H, W) -> (N, groups, C/groups * H * W), InstanceNormalization, and back;
* `moments`, for one group: the mean and the variance of each channel, then those of all channels from them (Chan, Golub
  and LeVeque 1979, equal counts): mean = E[m_c], var = E[v_c + (m_c - mean)^2]; (x - mean) / sqrt(var + epsilon). In
  fp16 TensorRT-RTX moves 145 MB with it in shiftvit_t, and 259 MB with `instance`; in fp32 it needs more kernels.

Then come Mul and Add, which are left out where they would do nothing.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.graph import constant, describe, initializer, integers, remove_unused, replace_value

Form: TypeAlias = Literal["native", "instance", "moments"]


def lower_group_norm(model: ir.Model, form: Form) -> None:
    if form == "native":
        return
    for node in list(model.graph):
        if node.op_type == "GroupNormalization" and not node.domain:
            _lower(node, model.graph, form)
    remove_unused(model)


def _lower(node: ir.Node, graph: ir.Graph, form: Form) -> None:
    one_group = node.attributes.get_int("num_groups") == 1
    normalised = _moments(node, graph) if form == "moments" and one_group else _instance(node, graph)
    shape = _static(node)
    for op_type, index, neutral in (("Mul", 1, 1), ("Add", 2, 0)):
        values = constant(node.inputs[index])
        if values is not None and np.all(values == neutral):
            continue
        column = [-1, *([1] * (len(shape) - 2))]  # (C, 1, 1)
        operand = _column(node, graph, index, column)
        applied = ir.node(op_type, [normalised, operand], name=f"{node.name}_{op_type}")
        graph.insert_before(node, applied)
        describe(applied.outputs[0], node.outputs[0])
        normalised = applied.outputs[0]
    replace_value(node.outputs[0], normalised)


def _column(node: ir.Node, graph: ir.Graph, index: int, column: list[int]) -> ir.Value:
    values = constant(node.inputs[index])
    if values is not None:
        return initializer(graph, f"{node.name}.{'scale' if index == 1 else 'bias'}", values.reshape(column))
    reshaped = ir.node("Reshape", [node.inputs[index], integers(graph, f"{node.name}.column", column)])
    graph.insert_before(node, reshaped)
    return reshaped.outputs[0]


def _instance(node: ir.Node, graph: ir.Graph) -> ir.Value:
    groups = node.attributes.get_int("num_groups")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    shape = _static(node)
    flat = integers(graph, f"{node.name}.groups", [0, groups, -1])
    back = integers(graph, f"{node.name}.shape", list(shape))
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


def _moments(node: ir.Node, graph: ir.Graph) -> ir.Value:
    """The steps, each node named `<node>_<step>`. A typed fp16 graph keeps them in fp32."""
    dtype = node.inputs[0].dtype.numpy() if node.inputs[0] is not None and node.inputs[0].dtype else np.float32
    epsilon = initializer(graph, f"{node.name}.epsilon", np.asarray(node.attributes.get_float("epsilon", 1e-5), dtype))
    one = initializer(graph, f"{node.name}.one", np.asarray(1, dtype))
    pixels, last = integers(graph, f"{node.name}.pixels", [2, 3]), integers(graph, f"{node.name}.last", [-1])
    row = integers(graph, f"{node.name}.row", [0, 1, 1, -1])
    nodes: list[ir.Node] = []

    def step(op_type: str, name: str, *inputs: ir.Value | None) -> ir.Value:
        attributes = {"keepdims": 1} if op_type == "ReduceMean" else {}
        nodes.append(ir.node(op_type, list(inputs), attributes, name=f"{node.name}_{name}"))
        return nodes[-1].outputs[0]

    x = node.inputs[0]  # (N, C, H, W)
    channel_mean = step("ReduceMean", "channel_mean", x, pixels)  # (N, C, 1, 1)
    from_channel = step("Sub", "from_channel", x, channel_mean)
    channel_variance = step("ReduceMean", "channel_variance", step("Mul", "square", from_channel, from_channel), pixels)
    means, variances = step("Reshape", "means", channel_mean, row), step("Reshape", "variances", channel_variance, row)
    mean = step("ReduceMean", "mean", means, last)  # (N, 1, 1, 1), the means being (N, 1, 1, C)
    apart = step("Sub", "apart", means, mean)
    spread = step("Add", "spread", variances, step("Mul", "apart_square", apart, apart))
    variance = step("Add", "variance", step("ReduceMean", "mean_spread", spread, last), epsilon)
    reciprocal = step("Div", "reciprocal", one, step("Sqrt", "deviation", variance))
    step("Mul", "normalise", step("Sub", "centre", x, mean), reciprocal)
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
    describe(result, before.outputs[0])
    return result


def _static(node: ir.Node) -> tuple[int, ...]:
    """The input's shape, with -1 for a dynamic batch."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    known = [dim if isinstance(dim, int) else -1 for dim in shape] if shape is not None else [-1, -1]
    if -1 in known[1:]:
        raise ExportError(f"{node.name}: only the batch may be dynamic, and the shape is {shape}")
    return tuple(known)
