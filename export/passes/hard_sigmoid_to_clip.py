"""Fold the affine maps around a HardSigmoid into the linear layer before it, and clip.

HardSigmoid(x) = clip(a x + b, 0, 1). For c > 0, c HardSigmoid(x) + e = clip(c a x + c b + e, e, c + e), and the map of
x goes into the layer that computes x. If a Split along the layer's outputs lies between the two, each part has its own
c and e, and its own part of the weights. The dynamic ReLU of Mobile-Former computes its two slopes this way: 2 h and
2 h - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    initializer,
    only_consumer,
    remove_unused,
    replace_value,
    static_size,
)
from edgevit.export.linear import Linear, linear_producing

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class _Affine:
    """The map y = scale x + shift, whose last operator computes `output`."""

    scale: float
    shift: float
    output: ir.Value


def hard_sigmoid_to_clip(model: ir.Model) -> None:
    """Rewrite each HardSigmoid between a linear layer and affine maps."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "HardSigmoid" else None
        layer = linear_producing(source) if source is not None else None
        if layer is None or layer.bias is None or only_consumer(layer.output) is not node:
            continue
        parts = _parts(node.outputs[0], layer.weight.shape[1])
        if parts:
            _rewrite(node, layer, parts, model.graph)
    remove_unused(model)


def _parts(value: ir.Value, width: int) -> list[tuple[ir.Value, int]]:
    """Return the values that the HardSigmoid's output is split into, and the widths of their parts."""
    last = value
    while (reader := only_consumer(last)) is not None and reader.op_type in _RESHAPES:
        last = reader.outputs[0]
    if reader is None or reader.op_type != "Split" or not _is_channel_axis(last, reader, width):
        return [(value, width)]
    parts = [(output, static_size(output, 1) or 0) for output in reader.outputs]
    return parts if sum(size for _, size in parts) == width else []


def _is_channel_axis(value: ir.Value, split: ir.Node, width: int) -> bool:
    """Whether the Split is along axis 1 of (N, width, 1, ...), the outputs of the linear layer."""
    shape = value.shape
    axis = split.attributes.get_int("axis", 0)
    return shape is not None and axis in (1, 1 - len(shape)) and list(shape)[1:] == [width, *[1] * (len(shape) - 2)]


def _affine_after(value: ir.Value) -> _Affine:
    """Return the affine map with scalars that only operators after `value` compute."""
    scale, shift = 1.0, 0.0
    while (node := only_consumer(value)) is not None and node.op_type in ("Add", "Div", "Mul", "Sub"):
        index = 1 if node.inputs[0] is value else 0
        array = constant(node.inputs[index])
        if array is None or array.size != 1 or array.ndim > len(value.shape or ()):
            break
        number = float(array.reshape(()))
        if node.op_type == "Mul" and number > 0:
            scale, shift = scale * number, shift * number
        elif node.op_type == "Div" and number > 0 and index == 1:
            scale, shift = scale / number, shift / number
        elif node.op_type == "Add" or (node.op_type == "Sub" and index == 1):
            shift += number if node.op_type == "Add" else -number
        else:
            break
        value = node.outputs[0]
    return _Affine(scale, shift, value)


def _rewrite(node: ir.Node, layer: Linear, parts: list[tuple[ir.Value, int]], graph: ir.Graph) -> None:
    """Fold the maps of all parts into the layer, and clip each part."""
    maps = [_affine_after(value) for value, _ in parts]
    if all(found.output is value for found, (value, _) in zip(maps, parts, strict=True)):
        return
    slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    widths = [width for _, width in parts]
    scales = np.repeat([found.scale for found in maps], widths)
    shifts = np.repeat([found.shift for found in maps], widths)
    assert layer.bias is not None
    bias = scales * (slope * layer.bias + offset) + shifts
    layer.replace_weights(layer.weight * scales * slope, bias, graph)
    dtype = layer.weight.dtype
    node.outputs[0].replace_all_uses_with(layer.output)
    for number, (found, (value, _)) in enumerate(zip(maps, parts, strict=True)):
        source = layer.output if value is node.outputs[0] else value
        name = f"{node.name}_{number}" if len(parts) > 1 else node.name
        limits = [found.shift, found.scale + found.shift]
        values = [
            initializer(graph, f"{name}.{kind}", np.asarray(x, dtype))
            for kind, x in zip(("min", "max"), limits, strict=True)
        ]
        clip = ir.node("Clip", [None, *values], name=name)
        anchor = found.output.producer()
        assert anchor is not None
        graph.insert_after(anchor, clip)
        replace_value(found.output, clip.outputs[0])
        clip.replace_input_with(0, source)  # last, because the source of a part without a map is what is replaced
