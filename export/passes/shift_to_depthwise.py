"""Compute the shift of a feature map as one depthwise convolution; a form that `edgevit tune` tries.

A shift moves groups of channels by some pixels each, and zeros come in from the border (ShiftViT, Wang et al., AAAI
2022, section 3.2). Moving a channel x by (v, h) is its convolution with a kernel that is 1 at one place, 0 elsewhere:

    y[i, j] = x[i - v, j - h] = sum_{k, l} w[k, l] x[i + k - p, j + l - p],    w[p - v, p - h] = 1

with x = 0 outside the map, which is the padding p of the convolution. So a concatenation of slices of one map, each
padded on the opposite side, becomes one operator that reads and writes the map once. Products with 0 make NaN of
numbers that are not finite, so that those spread to p pixels around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    copy_shape_and_type,
    initializer,
    numpy_dtype,
    remove_unused,
    replace_value,
    static_size,
)
from edgevit.types import Array

_MAX_PIXELS = 3  # of a shift: a kernel of 7 x 7


@dataclass(frozen=True, slots=True)
class _Part:
    """Channels of a map, moved by some pixels."""

    source: ir.Value
    channels: range
    down: int
    right: int


def shift_to_depthwise(model: ir.Model) -> None:
    """Replace each concatenation of all channels of one map, some of them moved, by a depthwise convolution."""
    for node in list(model.graph):
        if parts := _parts(node):
            replace_value(node.outputs[0], _convolution(node, parts, model.graph).outputs[0])
    remove_unused(model)


def _parts(node: ir.Node) -> list[_Part]:
    """Return the parts that a Concat joins; none if they are not all channels of one map in their order."""
    if node.op_type != "Concat" or node.domain or node.attributes.get_int("axis", 0) != 1:
        return []
    parts = [part for value in node.inputs if (part := _part(value)) is not None]
    if len(parts) < len(node.inputs) or not any(part.down or part.right for part in parts):
        return []
    source, ends = parts[0].source, [0, *(part.channels.stop for part in parts)]
    in_order = all(part.source is source and part.channels.start == end for part, end in zip(parts, ends, strict=False))
    return parts if in_order and ends[-1] == static_size(source, 1) else []


def _part(value: ir.Value | None) -> _Part | None:
    """Return the channels of a map that a Slice takes, and how far a Pad behind it moves them."""
    node = value.producer() if value is not None else None
    pads = [(0, 0), (0, 0)]
    if node is not None and node.op_type == "Pad":
        found = _zeros_around(node)
        if found is None:
            return None
        pads, node = found, node.inputs[0].producer() if node.inputs[0] is not None else None
    kept = _kept(node) if node is not None and node.op_type == "Slice" else None
    if node is None or kept is None or node.inputs[0] is None:
        return None
    channels, *sides = kept
    sizes = [static_size(node.inputs[0], axis) for axis in (2, 3)]
    moved = [_moved(side, size, *pad) for side, size, pad in zip(sides, sizes, pads, strict=True)]
    if moved[0] is None or moved[1] is None:
        return None
    return _Part(source=node.inputs[0], channels=channels, down=moved[0], right=moved[1])


def _zeros_around(pad: ir.Node) -> list[tuple[int, int]] | None:
    """Return the zeros above and below, left and right that a Pad adds to a map; None if it does anything else."""
    mode, count = pad.attributes.get_string("mode", "constant"), constant(pad.inputs[1])
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    fill = constant(value) if value is not None else np.zeros(1)
    has_axes = len(pad.inputs) > 3 and pad.inputs[3] is not None
    if mode != "constant" or count is None or count.size != 8 or count.min() < 0 or has_axes:
        return None
    if fill is None or fill.any() or count.reshape(2, 4)[:, :2].any():
        return None
    return [(int(count[axis]), int(count[axis + 4])) for axis in (2, 3)]


def _kept(cut: ir.Node) -> list[range] | None:
    """Return the channels, rows and columns of a map (N, C, H, W) that a Slice keeps; None if it does anything else."""
    source, starts, ends = cut.inputs[0], constant(cut.inputs[1]), constant(cut.inputs[2])
    axes = constant(cut.inputs[3]) if len(cut.inputs) > 3 else None
    steps = constant(cut.inputs[4]) if len(cut.inputs) > 4 else np.ones(1)
    if source is None or len(source.shape or ()) != 4 or starts is None or ends is None or axes is None:
        return None
    sizes = {axis: static_size(source, axis) for axis in (1, 2, 3)}
    found = {axis: range(size) for axis, size in sizes.items() if size is not None}
    if steps is None or (steps != 1).any() or len(found) < len(sizes):
        return None
    for axis, start, end in zip(axes.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if axis % 4 not in found:
            return None
        found[axis % 4] = found[axis % 4][start:end]
    return list(found.values())


def _moved(kept: range, size: int | None, before: int, behind: int) -> int | None:
    """Return by how many pixels a side is moved if it keeps these of `size` and has zeros before and behind them."""
    pixels = before - kept.start
    stays = size is not None and abs(pixels) <= _MAX_PIXELS
    if not stays or kept != range(max(0, -pixels), (size or 0) - max(0, pixels)):
        return None
    return pixels if (before, behind) == (max(0, pixels), max(0, -pixels)) else None


def _convolution(node: ir.Node, parts: list[_Part], graph: ir.Graph) -> ir.Node:
    source, channels = parts[0].source, parts[-1].channels.stop
    border = max(abs(pixels) for part in parts for pixels in (part.down, part.right))
    kernels: Array = np.zeros((channels, 1, 2 * border + 1, 2 * border + 1), numpy_dtype(source))
    for part in parts:
        kernels[part.channels.start : part.channels.stop, 0, border - part.down, border - part.right] = 1
    weights = initializer(graph, f"{node.name}.shifts", kernels)
    convolution = ir.node(
        "Conv",
        [source, weights],
        {"group": channels, "kernel_shape": kernels.shape[2:], "pads": [border] * 4},
        name=f"{node.name}_Conv",
    )
    graph.insert_before(node, convolution)
    copy_shape_and_type(convolution.outputs[0], node.outputs[0])
    return convolution
