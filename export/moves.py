"""Follow the elements of a tensor through operators that only move them, by running these with numbered elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    """Return the elements of all values that consist of elements of `start`, which has these, moved by MOVES."""
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
    parameters = [constant(value) for value in node.inputs if value is not None and value not in values]
    if any(parameter is None for parameter in parameters) or (node.op_type == "Concat" and parameters):
        return None
    try:
        return _run(node, arrays, [np.asarray(parameter) for parameter in parameters])
    except (ValueError, IndexError):  # such as windows of a map, with fewer windows in the array than a map has
        return None


def _run(node: ir.Node, arrays: Sequence[Array], given: Sequence[Array]) -> Sequence[Array] | None:
    array, attributes = arrays[0], node.attributes
    match node.op_type:
        case "Transpose":
            moved = array.transpose(attributes.get_ints("perm", range(array.ndim)[::-1]))
        case "Concat":
            moved = np.concatenate(arrays, attributes.get_int("axis", 0))
        case "Reshape":
            moved = array.reshape([size or array.shape[axis] for axis, size in enumerate(given[0].tolist())])
        case "Slice":
            moved = array[_slices(array.ndim, given)]
        case "Gather":
            moved = array.take(given[0], attributes.get_int("axis", 0))
        case "Unsqueeze":
            moved = np.expand_dims(array, tuple(given[0].tolist()))
        case "Squeeze":
            if not given:  # the axes that are 1 in this image, and perhaps not in another
                return None
            moved = array.squeeze(tuple(given[0].tolist()))
        case _:
            return _split(array, attributes.get_int("axis", 0), len(node.outputs), given)
    return [moved]


def _slices(rank: int, given: Sequence[Array]) -> tuple[slice, ...]:
    """Return the slices of starts, ends, axes and steps; the last two may be left out."""
    starts, ends = given[0].tolist(), given[1].tolist()
    axes = given[2].tolist() if len(given) > 2 else range(len(starts))
    steps = given[3].tolist() if len(given) > 3 else [1] * len(starts)
    slices = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # An end beyond the first value, which ONNX writes as a large negative number, is None in Python.
        slices[axis] = slice(start, None if step < 0 and end < -(1 << 30) else end, step)
    return tuple(slices)


def _split(array: Array, axis: int, parts: int, given: Sequence[Array]) -> Sequence[Array]:
    size = -(-array.shape[axis] // parts)
    ends = np.cumsum(given[0]) if given else size * np.arange(1, parts + 1)
    return np.split(array, ends[:-1], axis)
