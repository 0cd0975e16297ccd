"""Merge the operators that move rows of a tensor into one Gather, such as a roll and the partition into windows.

Split, Slice, Concat, Reshape and Transpose nodes between two values may move whole rows (of the last axis) from place
to place. With the rows numbered, the nodes are run once: the result is the index of a Gather. Swin's windows take
two Splits, two Concats and a Transpose if they are shifted, each of which copies the tensor.

Shapes have to be static. Runs of fewer than `_MIN_COPIES` nodes that copy stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    initializer,
    insert,
    int64_initializer,
    module_of,
    remove_unused,
    replace_value,
)
from edgevit.export.moves import run_move
from edgevit.types import Array

_COPIES = frozenset({"Concat", "Slice", "Split", "Transpose"})
_MOVES = _COPIES | {"Reshape"}
_MIN_COPIES = 3


@dataclass(frozen=True, slots=True)
class Move:
    """Nodes that move the rows of `source` to `target`, in the order in which they run."""

    source: ir.Value
    target: ir.Value
    nodes: tuple[ir.Node, ...]


def gather_rows(model: ir.Model) -> None:
    """Replace each longest run of nodes that moves rows and copies them at least `_MIN_COPIES` times, in place."""
    found = [(move, _moved_rows(move)) for move in _moves(model.graph)]
    for move, rows in found:
        if rows is not None:
            _replace(move, rows, model.graph)
    remove_unused(model)


def _moves(graph: ir.Graph) -> Iterator[Move]:
    """Yield the runs that end where another kind of node reads a value."""
    for node in graph:
        for value in node.outputs if _is_move(node) else ():
            if any(not _is_move(use.node) for use in value.uses()) and (move := _move_to(value, graph)) is not None:
                yield move


def _is_move(node: ir.Node) -> bool:
    return node.op_type in _MOVES and not node.domain


def _move_to(target: ir.Value, graph: ir.Graph) -> Move | None:
    """Return the run that ends in a value, if all of it comes from one other value."""
    found: set[ir.Node] = set()
    sources: set[ir.Value] = set()
    open_values = [target]
    while open_values:
        value = open_values.pop()
        node = value.producer()
        if node is None or not _is_move(node):
            sources.add(value)
        elif node not in found:
            found.add(node)
            read = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            open_values += [each for each in read if each is not None]
    if len(sources) != 1 or sum(node.op_type in _COPIES for node in found) < _MIN_COPIES:
        return None
    return Move(sources.pop(), target, tuple(node for node in graph if node in found))


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape (..., row length) of a tensor; None if it is dynamic, unknown or not a tensor of rows."""
    sizes = tuple(size for size in value.shape if isinstance(size, int)) if value.shape is not None else ()
    return sizes if value.shape is not None and len(sizes) == len(value.shape) >= 2 and all(sizes) else None


def _moved_rows(move: Move) -> Array | None:
    """Return the index of the source's row for each row of the target, (rows,); None if rows do not move as a whole."""
    before, after = _shape(move.source), _shape(move.target)
    if before is None or after is None or before[-1] != after[-1]:
        return None
    width = before[-1]
    values = {move.source: np.arange(math.prod(before)).reshape(before)}
    for node in move.nodes:
        outputs = run_move(node, values)
        if outputs is None:
            return None
        values |= zip(node.outputs, outputs, strict=True)
    moved = values[move.target].reshape(-1, width)
    rows = moved[:, 0] // width
    if not np.array_equal(moved, rows[:, np.newaxis] * width + np.arange(width)):
        return None
    return None if np.array_equal(rows, np.arange(math.prod(before) // width)) else rows


def _replace(move: Move, rows: Array, graph: ir.Graph) -> None:
    before, after = _shape(move.source), _shape(move.target)
    last = move.target.producer()
    assert before is not None and after is not None and last is not None
    name, width = f"{module_of(last)}/Gather".lstrip("/"), before[-1]

    def add(operator: str, value: ir.Value, parameter: ir.Value, *shape: int) -> ir.Value:
        node = ir.node(operator, [value, parameter], {"axis": 0} if operator == "Gather" else {})
        node.name = name if operator == "Gather" else f"{name}_{'rows' if len(shape) == 2 else 'shape'}"
        return insert(node, before=last, graph=graph, like=move.target, shape=ir.Shape(shape))

    count = math.prod(before) // width
    value = add("Reshape", move.source, int64_initializer(graph, f"{name}.rows", [count, width]), count, width)
    value = add("Gather", value, initializer(graph, f"{name}.index", rows.astype(np.int64)), len(rows), width)
    value = add("Reshape", value, int64_initializer(graph, f"{name}.shape", list(after)), *after)
    replace_value(move.target, value)
