"""Run 1x1 convolutions as matmuls in NHWC.

A graph that normalizes over channels transposes NCHW to NHWC and, with a Transpose T, back. A 1x1 convolution after T
is a matmul before it: W * T(x) + b = T(x W^T + b). T is then moved behind elementwise operators, and behind a sum,
whose other operand is transposed instead. The 1x1 convolutions of a block and its residual become matmuls without
transposes between them, and TensorRT-RTX makes one kernel of each with its bias, activation and residual.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    NCHW_TO_NHWC,
    NHWC_TO_NCHW,
    constant,
    initializer,
    insert,
    is_pointwise,
    module_of,
    only_consumer,
    remove_unused,
    replace_value,
)

_ELEMENTWISE = frozenset({"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid", "Tanh"})


def pointwise_conv_to_matmul(model: ir.Model) -> None:
    """Replace each 1x1 convolution that reads a Transpose to NCHW, and move the Transpose down the graph."""
    for node in list(model.graph):
        if _is_transpose(node, NHWC_TO_NCHW) and is_pointwise(only_consumer(node.outputs[0])):
            _move_down(node, model.graph)
    remove_unused(model)


def _is_transpose(node: ir.Node, permutation: list[int]) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == permutation


def _move_down(transpose: ir.Node, graph: ir.Graph) -> None:
    """Move the Transpose behind its consumer and the following ones as far as possible; cancel it if it is undone."""
    while (consumer := only_consumer(transpose.outputs[0])) is not None:
        result = _in_nhwc(transpose, consumer, graph)
        if result is None:
            break
        transpose = ir.node("Transpose", [result], {"perm": NHWC_TO_NCHW}, name=f"{consumer.name}_first")
        graph.insert_before(consumer, transpose)
        replace_value(consumer.outputs[0], transpose.outputs[0])
    nhwc = transpose.inputs[0]
    for consumer in [use.node for use in transpose.outputs[0].uses()]:
        if nhwc is not None and _is_transpose(consumer, NCHW_TO_NHWC):
            replace_value(consumer.outputs[0], nhwc)


def _in_nhwc(transpose: ir.Node, consumer: ir.Node, graph: ir.Graph) -> ir.Value | None:
    """Compute the consumer's output in NHWC from the input of the Transpose; None if the operator is not supported."""
    nhwc = transpose.inputs[0]  # (N, H, W, C)
    assert nhwc is not None
    if is_pointwise(consumer):
        return _matmul(nhwc, consumer, graph)
    if consumer.op_type in _ELEMENTWISE:
        return _insert_nhwc(ir.node(consumer.op_type, [nhwc], consumer.attributes, name=consumer.name), consumer, graph)
    if consumer.op_type == "Add" and (other := _other_operand(transpose, consumer)) is not None:
        node = ir.node("Transpose", [other], {"perm": NCHW_TO_NHWC}, name=f"{consumer.name}_last")
        other = _insert_nhwc(node, consumer, graph)
        return _insert_nhwc(ir.node("Add", [other, nhwc], name=consumer.name), consumer, graph)
    return None


def _matmul(nhwc: ir.Value, convolution: ir.Node, graph: ir.Graph) -> ir.Value:
    """Compute a 1x1 convolution as a matmul with a bias; returns (N, H, W, outputs)."""
    weight = constant(convolution.inputs[1])
    assert weight is not None
    name = f"{module_of(convolution)}/MatMul".lstrip("/")
    matrix = initializer(graph, f"{name}.weight", weight[:, :, 0, 0].T)  # (inputs, outputs)
    result = _insert_nhwc(ir.node("MatMul", [nhwc, matrix], name=name), convolution, graph)
    bias = constant(convolution.inputs[2]) if len(convolution.inputs) > 2 else None
    if bias is None:
        return result
    added = initializer(graph, f"{name}.bias", bias)
    return _insert_nhwc(ir.node("Add", [result, added], name=f"{name}_bias"), convolution, graph)


def _other_operand(transpose: ir.Node, add: ir.Node) -> ir.Value | None:
    """Return the sum's other operand if it has the same shape as the transposed one; else None."""
    first, second = add.inputs
    other = second if first is transpose.outputs[0] else first
    same = other is not None and other.shape is not None and other.shape == transpose.outputs[0].shape
    return other if same and other is not transpose.outputs[0] else None


def _insert_nhwc(node: ir.Node, consumer: ir.Node, graph: ir.Graph) -> ir.Value:
    """Insert a node before `consumer`; its output has the consumer's output shape in NHWC."""
    like = consumer.outputs[0]
    shape = None if like.shape is None else ir.Shape([like.shape[axis] for axis in NCHW_TO_NHWC])
    return insert(node, before=consumer, graph=graph, like=like, shape=shape)
