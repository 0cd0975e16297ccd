"""Pattern matching for the rules: attention, LayerNorm, Mish, and shapes with a fixed batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import static_size
from edgevit.export.lint.context import LintContext, consumers, is_input, producer, stored_array

_PRODUCTS = frozenset({"MatMul", "Einsum"})
# Operators between the two products of attention: scales, masks and casts.
_BETWEEN = frozenset({"Add", "Cast", "Clip", "Div", "Dropout", "Identity", "Mul", "Reshape", "Sub", "Where"})
_MAX_VISITED = 12  # nodes that a search visits


# Attention


def attention_products(context: LintContext) -> Iterator[ir.Node]:
    """Iterate over the query-key products of the data path: a product, a Softmax and another product in sequence."""
    for softmax in context.find("Softmax"):
        if not any(node.op_type in _PRODUCTS for node in downstream(softmax)):
            continue
        for node in upstream(softmax.inputs[0]):
            computed = (producer(value) in context.data or is_input(value) for value in node.inputs)
            if node.op_type in _PRODUCTS and len(node.inputs) == 2 and all(computed):
                yield node
                break


def head_channels(product: ir.Node) -> int | None:
    """Return the number of channels per attention head, over which queries and keys are multiplied; None if unknown."""
    query = product.inputs[0]
    if product.op_type == "Einsum":
        axis = _contracted_axis(product.attributes.get_string("equation", ""))
        return None if axis is None else static_size(query, axis)
    heads_apart = product.op_type == "MatMul" or (
        query is not None and query.shape is not None and len(query.shape) == 4
    )
    return static_size(query, -1) if heads_apart else None


def _contracted_axis(equation: str) -> int | None:
    """Return the axis of an Einsum's first input that is summed over, counted from the end; None if not exactly one.

    It is in the second input and not in the output: -1 in "bihd,bjhd->bhij".
    """
    terms, _, out = equation.replace(" ", "").replace("...", ".").partition("->")
    left, _, right = terms.partition(",")
    axes = [index - len(left) for index, label in enumerate(left) if label in right and label not in out]
    return axes[0] if len(axes) == 1 and "." not in left[axes[0] :] else None


def upstream(value: ir.Value | None) -> Iterator[ir.Node]:
    """Iterate over the producers of a value, nearest first, passing through scales, masks and casts."""
    queue = [value]
    for _ in range(_MAX_VISITED):
        node = producer(queue.pop(0)) if queue else None
        if node is not None:
            yield node
            queue += node.inputs if node.op_type in _BETWEEN else ()


def downstream(node: ir.Node, *, through: frozenset[str] = _BETWEEN) -> Iterator[ir.Node]:
    """Iterate over the consumers of a node, nearest first, passing through the operators of some types."""
    queue = [user for value in node.outputs for user in consumers(value)]
    for _ in range(_MAX_VISITED):
        if queue:
            user = queue.pop(0)
            yield user
            queue += [each for value in user.outputs for each in consumers(value)] if user.op_type in through else ()


# Normalization over channels


def decomposed_layer_norms(context: LintContext) -> Iterator[ir.Node]:
    """Iterate over the means of LayerNorms over the channels of an NCHW tensor that are written with basic operators.

    Pattern: x - mean(x, 1), whose square is averaged over the channels and by which something is normalized.
    """
    for center in context.find("Sub"):
        mean = producer(center.inputs[1])
        if mean is None or not _is_channel_mean(mean) or mean.inputs[0] is not center.inputs[0]:
            continue
        squares = [user for user in consumers(center.outputs[0]) if _is_square_of(user, center.outputs[0])]
        others = {*consumers(center.outputs[0]), *consumers(mean.outputs[0])} - {center, *squares}
        others |= {user for user in consumers(center.inputs[0]) if user is not center and _subtracts_channel_mean(user)}
        if not any(user.op_type in ("Div", "Mul", "Sub") for user in others):
            continue  # only a variance: nothing is normalized by it
        if any(_is_channel_mean(user) for square in squares for user in consumers(square.outputs[0])):
            yield mean


def _is_channel_mean(node: ir.Node) -> bool:
    """Whether a node averages or sums over axis 1, and only over it, of a tensor of at least three dimensions."""
    source = node.inputs[0] if node.inputs else None
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    if node.op_type not in ("ReduceMean", "ReduceSum") or rank < 3:
        return False
    array = stored_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = array.tolist() if array is not None else list(node.attributes.get_ints("axes", ()))
    return [axis % rank for axis in axes] == [1]


def _subtracts_channel_mean(node: ir.Node) -> bool:
    """Whether a node subtracts a mean over the channels; torch.var_mean computes its mean in a separate node."""
    return node.op_type == "Sub" and any(_is_channel_mean(source) for source in upstream(node.inputs[1]))


def _is_square_of(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type == "Pow":
        exponent = stored_array(node.inputs[1])
        return node.inputs[0] is value and exponent is not None and bool(np.all(exponent == 2))
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1] is value


# Activations


def is_mish(node: ir.Node) -> bool:
    """Whether a Mul computes x tanh(softplus(x)).

    PyTorch's softplus multiplies its input by beta and returns x above a threshold.
    """
    for value in node.inputs:
        tanh = producer(value)
        if tanh is not None and tanh.op_type == "Tanh":
            softplus = next((source for source in upstream(tanh.inputs[0]) if source.op_type == "Softplus"), None)
            return softplus is not None and any(
                source in node.inputs for source in (softplus.inputs[0], *_factors(softplus.inputs[0]))
            )
    return False


def _factors(value: ir.Value | None) -> tuple[ir.Value | None, ...]:
    node = producer(value)
    return tuple(node.inputs) if node is not None and node.op_type == "Mul" else ()


# Fixed batch


def fixed_batch(node: ir.Node) -> str | None:
    """Describe how a Reshape, Expand or Concat fixes a dynamic batch to a number; None if it does not."""
    return _FIXED_BATCH[node.op_type](node)


def _fixed_in_reshape(node: ir.Node) -> str | None:
    shape, source = stored_array(node.inputs[1]), node.inputs[0]
    if shape is None or source is None or source.shape is None or source.shape.is_static() or not shape.size:
        return None
    sizes = shape.tolist()
    if all(size > 0 for size in sizes):
        return f"Reshape to {sizes}, which has no dynamic dimension"
    if sizes[0] == 1 and len(sizes) == len(source.shape) and not isinstance(source.shape[0], int):
        return f"Reshape to {sizes} replaces the dynamic batch by 1"
    return None


def _fixed_in_expand(node: ir.Node) -> str | None:
    shape, source = stored_array(node.inputs[1]), node.inputs[0]
    if shape is None or source is None or source.shape is None or len(source.shape) != shape.size or not shape.size:
        return None
    if isinstance(source.shape[0], int) or int(shape[0]) <= 1:
        return None
    return f"Expand of a dynamic batch to {shape.tolist()}"


def _fixed_in_concat(node: ir.Node) -> str | None:
    first = [value.shape[0] for value in node.inputs if value is not None and value.shape is not None and value.shape]
    fixed = sorted({size for size in first if isinstance(size, int)})
    if node.attributes.get_int("axis", 0) == 0 or not fixed or len(fixed) == len(set(map(str, first))):
        return None
    return f"Concat of a dynamic batch with a fixed batch of {fixed[0]}"


_FIXED_BATCH: Mapping[str, Callable[[ir.Node], str | None]] = {
    "Reshape": _fixed_in_reshape,
    "Expand": _fixed_in_expand,
    "Concat": _fixed_in_concat,
}
