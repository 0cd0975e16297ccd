"""What mixes the channels of each pixel is done where the channels stand last.

A graph that normalises over channels turns them last and back: (N, C, H, W), (N, H, W, C), (N, C, H, W). A 1x1
convolution behind the way back, T, is a product in front of it: W * T(x) + b = T(x W^T + b). T is then carried on over
what computes each number by itself, and over a sum, whose other side is turned instead. So the 1x1 convolutions of a
block and its residual become products of matrices with no move between them, and TensorRT-RTX makes one kernel of each
with its bias, activation and residual.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    NCHW_TO_NHWC,
    NHWC_TO_NCHW,
    constant,
    copy_shape_and_type,
    has_constant_weights,
    initializer,
    module_of,
    only_consumer,
    remove_unused,
    replace_value,
)

_BY_ITSELF = frozenset({"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid", "Tanh"})


def pointwise_conv_to_matmul(model: ir.Model) -> None:
    for node in list(model.graph):
        if _turns(node, NHWC_TO_NCHW) and _is_pointwise(only_consumer(node.outputs[0])):
            _carry(node, model.graph)
    remove_unused(model)


def _turns(node: ir.Node, axes: list[int]) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == axes


def _is_pointwise(node: ir.Node | None) -> bool:
    """Whether the node is a 1x1 convolution with constant weights that reads every pixel once."""
    if node is None or node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.shape[2:] != (1, 1) or not has_constant_weights(node):
        return False
    strides = node.attributes.get_ints("strides", [1])
    return not any(node.attributes.get_ints("pads", [0])) and all(stride == 1 for stride in strides)


def _carry(turn: ir.Node, graph: ir.Graph) -> None:
    """Carries the transposition over its reader, and the reader of that, as far as it goes."""
    while (reader := only_consumer(turn.outputs[0])) is not None:
        result = _with_channels_last(turn, reader, graph)
        if result is None:
            break
        turn = ir.node("Transpose", [result], {"perm": NHWC_TO_NCHW}, name=f"{reader.name}_first")
        graph.insert_before(reader, turn)
        replace_value(reader.outputs[0], turn.outputs[0])
    last = turn.inputs[0]
    for reader in [use.node for use in turn.outputs[0].uses()]:
        if last is not None and _turns(reader, NCHW_TO_NHWC):
            replace_value(reader.outputs[0], last)


def _with_channels_last(turn: ir.Node, reader: ir.Node, graph: ir.Graph) -> ir.Value | None:
    """What `reader` computes of the transposition, from what that reads; None where it is nothing of the kind."""
    last = turn.inputs[0]  # (N, H, W, C)
    assert last is not None
    if _is_pointwise(reader):
        return _product(last, reader, graph)
    if reader.op_type in _BY_ITSELF:
        return _insert(ir.node(reader.op_type, [last], reader.attributes, name=reader.name), reader, graph)
    if reader.op_type == "Add" and (other := _other_side(turn, reader)) is not None:
        other = _insert(
            ir.node("Transpose", [other], {"perm": NCHW_TO_NHWC}, name=f"{reader.name}_last"), reader, graph
        )
        return _insert(ir.node("Add", [other, last], name=reader.name), reader, graph)
    return None


def _product(last: ir.Value, convolution: ir.Node, graph: ir.Graph) -> ir.Value:
    """The convolution as a product; (N, H, W, outputs)."""
    weight = constant(convolution.inputs[1])
    assert weight is not None
    name = f"{module_of(convolution)}/MatMul".lstrip("/")
    matrix = initializer(graph, f"{name}.weight", weight[:, :, 0, 0].T)  # (inputs, outputs)
    result = _insert(ir.node("MatMul", [last, matrix], name=name), convolution, graph)
    bias = constant(convolution.inputs[2]) if len(convolution.inputs) > 2 else None
    if bias is None:
        return result
    added = initializer(graph, f"{name}.bias", bias)
    return _insert(ir.node("Add", [result, added], name=f"{name}_bias"), convolution, graph)


def _other_side(turn: ir.Node, add: ir.Node) -> ir.Value | None:
    """The sum's other side, where it is as large as what is turned."""
    first, second = add.inputs
    other = second if first is turn.outputs[0] else first
    same = other is not None and other.shape is not None and other.shape == turn.outputs[0].shape
    return other if same and other is not turn.outputs[0] else None


def _insert(node: ir.Node, reader: ir.Node, graph: ir.Graph) -> ir.Value:
    """Puts the node in front of `reader`; its output is what `reader` computes, with the channels last."""
    graph.insert_before(reader, node)
    result, like = node.outputs[0], reader.outputs[0]
    copy_shape_and_type(result, like)
    if like.shape is not None:
        result.shape = ir.Shape([like.shape[axis] for axis in NCHW_TO_NHWC])
    return result
