"""Fold the scale of a sum into its summands if all other readers are norms.

With y = c x + f(z), where f ends in a linear layer, y' = (c d) x + d f(z) is d y: d goes into the weights of f. A norm
does not see the scale of its input, except through epsilon and the sign, so

    norm(y; epsilon) = (y - mean y) / sqrt(var y + epsilon) = sign(d) norm(y'; d^2 epsilon)

and the multiplication d y disappears. A network whose shortcuts are rescaled (channel shuffle) has two of them in each
layer. The first, c x, stays: its norm reads x too, and runtimes compute both together.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, initializer, insert, remove_unused, replace_value
from edgevit.export.operators import REARRANGING
from edgevit.types import Array

# Factors within these limits cost no accuracy: in fp16, d y must not overflow, and its standard deviation must stay
# above 2^-14, the smallest number with all its bits.
_SMALLEST, _LARGEST = 2**-10, 16
_MOVES = REARRANGING | {"Concat"}


def fold_shortcut_scale(model: ir.Model) -> None:
    """Fold the scale of each sum of a scaled shortcut and a branch that ends in a linear layer."""
    for node in list(model.graph):
        if node.op_type == "Add":
            _fold(node, model.graph)
    remove_unused(model)


def _fold(addition: ir.Node, graph: ir.Graph) -> None:
    total = addition.outputs[0]
    scaling = _only_scaling(total)
    scale = None if scaling is None else _scale(scaling)
    if scaling is None or scale is None or not _SMALLEST <= abs(scale) <= _LARGEST:
        return
    for index in (0, 1):
        shortcut, branch = addition.inputs[index], addition.inputs[1 - index]
        rescale = None if shortcut is None else shortcut.producer()
        layers = None if branch is None else _layers_of(branch, addition)
        if rescale is None or _scale(rescale) is None or not layers:
            continue
        for layer in layers:
            _scale_constants(layer, scale, graph)
        addition.replace_input_with(index, _scaled_again(rescale, scale, graph))
        for norm in [use.node for use in total.uses() if use.node is not scaling]:
            _rescale_norm(norm, scale, graph)
        replace_value(scaling.outputs[0], total)
        return


def _only_scaling(total: ir.Value) -> ir.Node | None:
    """Return the node that scales a sum, if all others that read it are norms; None if not."""
    readers = [use.node for use in total.uses()]
    scalings = [node for node in readers if _scale(node) is not None]
    norms = [node for node in readers if _is_norm_of(node, total)]
    if len(scalings) != 1 or len(norms) + 1 != len(readers) or total.is_graph_output():
        return None
    return None if scalings[0].outputs[0].is_graph_output() else scalings[0]


def _is_norm_of(node: ir.Node, value: ir.Value) -> bool:
    """Whether the node is a LayerNormalization of the value with constant scale."""
    is_norm = node.op_type == "LayerNormalization" and len(node.outputs) == 1
    return is_norm and value not in node.inputs[1:] and constant(node.inputs[1]) is not None


def _scale(node: ir.Node) -> float | None:
    """Return the constant scalar that a Mul multiplies by; None for other nodes."""
    factor = _factor(node)
    number = None if factor is None else constant(node.inputs[factor])
    return None if number is None else float(number.reshape(-1)[0])


def _factor(node: ir.Node) -> int | None:
    """Return the index of the constant scalar that a Mul multiplies by; None if there is none."""
    if node.op_type != "Mul":
        return None
    for index in (0, 1):
        number, other = constant(node.inputs[index]), node.inputs[1 - index]
        if number is not None and number.size == 1 and number.ndim <= len((other and other.shape) or ()):
            return index
    return None


def _layers_of(branch: ir.Value, addition: ir.Node) -> list[ir.Node]:
    """Return the linear layers and bias additions to scale so that `branch` is scaled.

    Empty if the branch does not end in linear layers, or another node reads an intermediate value.
    """
    inside, layers, pending = {addition}, [], [branch]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or value.is_graph_output():
            return []
        if node in inside:
            continue
        inside.add(node)
        if node.op_type in _MOVES:
            pending += [source for source in _sources(node) if source is not None]
        elif _is_bias(node):
            layers.append(node)
            pending += [source for source in node.inputs if source is not None and constant(source) is None]
        elif _is_linear(node):
            layers.append(node)
        else:
            return []
    scaled = [output for node in inside - {addition} for output in node.outputs]
    return layers if all(use.node in inside for value in scaled for use in value.uses()) else []


def _sources(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return tuple(node.inputs) if node.op_type == "Concat" else tuple(node.inputs[:1])


def _is_bias(node: ir.Node) -> bool:
    """Whether the node adds a constant to an activation."""
    return node.op_type == "Add" and [constant(value) is None for value in node.inputs].count(False) == 1


def _is_linear(node: ir.Node) -> bool:
    """Whether the node multiplies an activation by a constant matrix, and adds at most a constant bias."""
    constants = [constant(value) is not None for value in node.inputs[1:] if value is not None]
    return node.op_type in ("Gemm", "MatMul") and all(constants) and constant(node.inputs[0]) is None


def _scale_constants(layer: ir.Node, factor: float, graph: ir.Graph) -> None:
    """Multiply the constants of a layer, its weights and its bias, by a factor."""
    for index, value in enumerate(layer.inputs):
        array = constant(value)
        if array is not None:
            layer.replace_input_with(index, initializer(graph, f"{layer.name}.scaled_{index}", _times(array, factor)))


def _times(array: Array, factor: float) -> Array:
    return np.asarray(np.asarray(array, np.float64) * factor, array.dtype)


def _scaled_again(rescale: ir.Node, factor: float, graph: ir.Graph) -> ir.Value:
    """Insert a Mul that computes `factor` times what `rescale` does; return its output."""
    place = _factor(rescale)
    number = None if place is None else constant(rescale.inputs[place])
    assert place is not None and number is not None
    product = initializer(graph, f"{rescale.name}.product", _times(number, factor))
    node = ir.node("Mul", [rescale.inputs[1 - place], product], name=rescale.name)
    source = rescale.outputs[0]
    return insert(node, before=rescale, graph=graph, like=source, shape=source.shape)


def _rescale_norm(norm: ir.Node, factor: float, graph: ir.Graph) -> None:
    """Change a norm so that `factor` times its input gives the output that the input gave."""
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon * factor**2)
    weight = constant(norm.inputs[1])
    if factor < 0 and weight is not None:
        norm.replace_input_with(1, initializer(graph, f"{norm.name}.weight", -weight))
