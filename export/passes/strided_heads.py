"""Let products of attention read their heads with strides instead of transposing tokens to heads first.

Used for ONNX Runtime, which fuses a Transpose (1, 2, 0, 3) into the MatMul that reads it (`FusedMatMul`, `transBatchA`
and `transBatchB`): the rows of a head then lie h D numbers apart, and nothing is copied. Attention transposes
(N, L, h, D) by (0, 2, 1, 3) instead, which it copies. For one image both are the same order of elements, from
(1, L, h, D) or from (L, 1, h, D), and either shape is that of the tokens (1, L, h D).
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, int64_initializer, only_consumer, remove_unused

_TO_HEADS = [0, 2, 1, 3]
_FUSED = [1, 2, 0, 3]
_SWAP = [0, 1, 3, 2]  # of keys, which ONNX Runtime fuses too


def strided_heads(model: ir.Model) -> None:
    """Move the axis of tokens before that of the only image, where a product alone reads the heads."""
    for node in list(model.graph):
        reshape = _tokens(node)
        if reshape is not None and all(_is_fused(use.node, use.idx) for use in node.outputs[0].uses()):
            _move(reshape, node, model.graph)
    remove_unused(model)


def _tokens(transpose: ir.Node) -> ir.Node | None:
    """Return the Reshape to (1, L, h, D) that a Transpose to heads alone reads; None if there is none."""
    if transpose.op_type != "Transpose" or transpose.domain or _order(transpose) != _TO_HEADS:
        return None
    value = transpose.inputs[0]
    reshape = value.producer() if value is not None else None
    if value is None or reshape is None or reshape.op_type != "Reshape" or only_consumer(value) is None:
        return None
    shape, source = value.shape, reshape.inputs[0]
    is_static = shape is not None and all(isinstance(size, int) for size in shape)
    has_one_image = shape is not None and shape[0] == 1 and source is not None and source.shape is not None
    return reshape if is_static and has_one_image and constant(reshape.inputs[1]) is not None else None


def _order(transpose: ir.Node) -> list[int]:
    return list(transpose.attributes.get_ints("perm", []) or [])


def _is_fused(node: ir.Node, index: int) -> bool:
    """Whether a reader of heads is a product, or what ONNX Runtime fuses into one: a scale, or the swap of keys."""
    if node.domain:
        return False
    if node.op_type == "MatMul":
        return True
    if node.op_type in ("Mul", "Div"):
        factor = constant(node.inputs[1 - index]) if node.op_type == "Mul" or index == 0 else None
        is_scale = factor is not None and factor.size == 1
    else:
        is_scale = node.op_type == "Transpose" and _order(node) == _SWAP
    reader = only_consumer(node.outputs[0]) if is_scale else None
    return reader is not None and reader.op_type == "MatMul" and not reader.domain


def _move(reshape: ir.Node, transpose: ir.Node, graph: ir.Graph) -> None:
    value = reshape.outputs[0]
    assert value.shape is not None
    _, tokens, heads, depth = (int(size) for size in value.shape if isinstance(size, int))
    sizes = [tokens, 1, heads, depth]
    reshape.replace_input_with(1, int64_initializer(graph, f"{reshape.name}.strided", sizes))
    value.shape = ir.Shape(sizes)
    transpose.attributes["perm"] = ir.AttrInt64s("perm", _FUSED)
