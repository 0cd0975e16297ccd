"""Compute a depthwise convolution with several outputs per channel by depthwise convolutions with one.

A convolution in C groups with m C outputs computes output c m + j from channel c, with the kernel k[c m + j]. ONNX
Runtime and OpenVINO have fast kernels for m = 1 only. The outputs in the order j C + c are the concatenation of m
convolutions with the kernels k[j::m], or one convolution, with the kernels in that order, of the input repeated m times
along the channels. The first copies the outputs and reads the input m times, so it is used if the stride makes the
output smaller; the second copies the input. The readers take the channels in the new order, see `channel_order`; a
convolution whose readers cannot stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.channel_order import reorder_readers
from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    has_constant_weights,
    initializer,
    insert,
    remove_unused,
    replace_value,
    required_input,
)
from edgevit.types import Array


def expand_depthwise(model: ir.Model) -> None:
    """Replace each depthwise convolution with several outputs per channel whose readers take them in any order."""
    for node in list(model.graph):
        multiplier = _multiplier(node)
        if multiplier > 1:
            _expand(node, multiplier, model.graph)
    remove_unused(model)


def _multiplier(node: ir.Node) -> int:
    """Return the outputs per channel of a depthwise convolution; 0 for other nodes."""
    if node.op_type != "Conv" or not has_constant_weights(node):
        return 0
    weight, group = constant(node.inputs[1]), node.attributes.get_int("group", 1)
    is_depthwise = weight is not None and weight.ndim == 4 and weight.shape[1] == 1 and group > 1
    return weight.shape[0] // group if is_depthwise and weight is not None else 0


def _expand(node: ir.Node, multiplier: int, graph: ir.Graph) -> None:
    channels = node.attributes.get_int("group", 1)
    order = np.arange(multiplier * channels).reshape(channels, multiplier).T.reshape(-1)
    if not reorder_readers(node.outputs[0], order, graph):
        return
    weights = [constant(value) for value in node.inputs[1:] if value is not None]
    arrays = [array[order] for array in weights if array is not None]
    if max(node.attributes.get_ints("strides", [1])) > 1:
        parts = [_part(node, graph, arrays, slice(j * channels, (j + 1) * channels)) for j in range(multiplier)]
        joined = ir.node("Concat", parts, {"axis": 1}, name=f"{node.name}_joined")
        graph.insert_before(node, joined)
        replace_value(node.outputs[0], joined.outputs[0])
        return
    source = required_input(node)
    assert source.shape is not None
    repeated = ir.node("Concat", [source] * multiplier, {"axis": 1}, name=f"{node.name}_repeated")
    shape = ir.Shape([source.shape[0], multiplier * channels, *source.shape[2:]])
    value = insert(repeated, before=node, graph=graph, like=source, shape=shape)
    replace_value(node.outputs[0], _convolution(node, graph, value, arrays, name=node.name or "").outputs[0])


def _part(node: ir.Node, graph: ir.Graph, arrays: list[Array], rows: slice) -> ir.Value:
    """Insert the convolution that computes some of the outputs."""
    source = required_input(node)
    part = _convolution(node, graph, source, [array[rows] for array in arrays], name=f"{node.name}_{rows.start}")
    output = part.outputs[0]
    copy_shape_and_type(output, node.outputs[0])
    shape = node.outputs[0].shape
    output.shape = None if shape is None else ir.Shape([shape[0], rows.stop - rows.start, *shape[2:]])
    return output


def _convolution(node: ir.Node, graph: ir.Graph, source: ir.Value, arrays: list[Array], *, name: str) -> ir.Node:
    """Insert a depthwise convolution like `node` with other weights, one output per channel."""
    values = [
        initializer(graph, f"{name}.{kind}", array) for kind, array in zip(("weight", "bias"), arrays, strict=False)
    ]
    attributes = {**node.attributes, "group": ir.AttrInt64("group", len(arrays[0]))}
    new = ir.node("Conv", [source, *values], attributes, name=name)
    graph.insert_before(node, new)
    return new
