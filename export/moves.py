"""Follow the elements of a tensor through operators that only move them, by running these with numbered elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant
from edgevit.types import Array

MOVES = frozenset({"Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})


def images_of(value: ir.Value) -> int:
    """Return the size of a batch, or 2 if it is dynamic: the numbers of two images show that moves keep them apart."""
    assert value.shape is not None
    return value.shape[0] if isinstance(value.shape[0], int) else 2


def follow(start: ir.Value, numbers: Array) -> dict[ir.Value, Array]:
    """Return the arrays of all values that hold only elements of `start`, moved by MOVES.

    `numbers` is the array of `start`.
    """
    moved = {start: numbers}
    pending = [start]
    while pending:
        for use in pending.pop().uses():
            node = use.node
            if node.op_type not in MOVES or node.domain or node.outputs[0] in moved:
                continue
            outputs = run_move(node, moved)  # a Concat is met again with its last input
            if outputs is not None:
                moved |= zip(node.outputs, outputs, strict=True)
                pending += node.outputs
    return moved


def run_move(node: ir.Node, values: Mapping[ir.Value, Array]) -> Sequence[Array] | None:
    """Return the outputs of a node of MOVES for the arrays of its inputs.

    None if a parameter is not constant or does not fit arrays of this size, or if a Concat adds other elements.
    """
    arrays = [values[value] for value in node.inputs if value is not None and value in values]
    others = [value for value in node.inputs if value is None or value not in values]
    parameters = [constant(value) for value in others]  # None for those that are left out
    are_known = all(value is None or parameter is not None for value, parameter in zip(others, parameters, strict=True))
    if not are_known or (node.op_type == "Concat" and parameters):
        return None
    try:
        return _run(node, arrays, parameters)
    except (ValueError, IndexError):  # such as windows of a map, with fewer windows in the array than a map has
        return None


def _run(node: ir.Node, arrays: Sequence[Array], given: Sequence[Array | None]) -> Sequence[Array] | None:
    array, attributes = arrays[0], node.attributes
    numbers: list[Any] = [None if each is None else each.tolist() for each in given]
    first, *rest = numbers or [None]
    match node.op_type:
        case "Transpose":
            moved = array.transpose(attributes.get_ints("perm", range(array.ndim)[::-1]))
        case "Concat":
            moved = np.concatenate(arrays, attributes.get_int("axis", 0))
        case "Reshape":
            moved = array.reshape([size or array.shape[axis] for axis, size in enumerate(first)])
        case "Slice":
            moved = array[_slices(array.ndim, first, *rest)]
        case "Gather":
            moved = array.take(first, attributes.get_int("axis", 0))
        case "Unsqueeze":
            moved = np.expand_dims(array, tuple(first))
        case "Squeeze":
            if first is None:  # the axes that are 1 in this image, and perhaps not in another
                return None
            moved = array.squeeze(tuple(first))
        case _:
            return _split(array, attributes.get_int("axis", 0), len(node.outputs), first)
    return [moved]


def _slices(
    rank: int, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> tuple[slice, ...]:
    slices = [slice(None)] * rank
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # An end beyond the first value, which ONNX writes as a large negative number, is None in Python.
        slices[axis] = slice(start, None if step < 0 and end < -(1 << 30) else end, step)
    return tuple(slices)


def _split(array: Array, axis: int, parts: int, sizes: list[int] | None) -> Sequence[Array]:
    size = -(-array.shape[axis] // parts)
    ends = size * np.arange(1, parts + 1) if sizes is None else np.cumsum(sizes)
    return np.split(array, ends[:-1], axis)
