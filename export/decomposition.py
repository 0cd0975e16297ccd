"""Skip the decomposition of a program that it would not change.

torch.onnx.export traces every program a second time to decompose its operators, which takes as long as the first
trace. The second trace replaces three kinds of operators: those without a translation to ONNX; those that write into a
tensor; and composite ones that may return a view of their input. A program that has none of them is left as it is, and
so is one that only writes into tensors that nothing else reads, such as an activation after a norm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import Argument, map_arg

_ATEN = torch.ops.aten


def skip_needless_decomposition(program: torch.export.ExportedProgram) -> None:
    """Let `program.run_decompositions` return the program itself if it would change nothing.

    An exporter that does not call it still decomposes, and so does one that has no translation of an operator here.
    """
    nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    equals = {node: equal for node in nodes if (equal := _without_writing(node) or _as_mean(node)) is not None}
    if not all(node in equals or _stays_whole(node) for node in nodes):
        return
    for node, equal in equals.items():
        node.target, node.args = equal.target, equal.args
    targets = {node.target for node in nodes}
    decompose = program.run_decompositions

    def run_decompositions(table: Mapping[Any, object] | None = None, **options: Any) -> torch.export.ExportedProgram:
        if table is not None and targets.isdisjoint(table):
            return program
        return cast(torch.export.ExportedProgram, decompose(table, **options))

    program.run_decompositions = run_decompositions


def _stays_whole(node: Node) -> bool:
    """Whether a second trace leaves an operator as it is, or its translation to ONNX is known to be right."""
    target = node.target
    if target is operator.getitem:
        return True
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return False  # a call of a function, such as a branch
    if target in _COMPOSITE:
        return _COMPOSITE[target](node)
    return _is_functional(target) and (not _returns_view(target) or torch.Tag.core in target.tags or target in _VIEWS)


def _is_functional(target: OpOverload) -> bool:
    return not target._schema.is_mutable and torch.Tag.maybe_aliasing_or_mutating not in target.tags


def _returns_view(target: OpOverload) -> bool:
    return any(argument.alias_info is not None for argument in target._schema.arguments)


@dataclass(frozen=True, slots=True)
class _Equal:
    """A call that gives the same values as another one."""

    target: OpOverload
    args: tuple[Argument, ...]


def _without_writing(node: Node) -> _Equal | None:
    """Return the call that computes what `node` writes into a tensor that it alone reads; None if others read it."""
    if not isinstance(node.target, OpOverload) or not node.args or not isinstance(node.args[0], Node):
        return None
    name, written = node.target._schema.name.removeprefix("aten::"), node.args[0]
    if not name.endswith("_") or list(written.users) != [node] or not _is_new(written):
        return None
    functional = getattr(getattr(_ATEN, name[:-1], None), node.target._overloadname, None)
    if not isinstance(functional, OpOverload) or not _has_type_of(written, functional, node):
        return None
    return _Equal(functional, node.args)


def _has_type_of(written: Node, functional: OpOverload, node: Node) -> bool:
    """Whether an operator returns values of the type that it would write: a comparison, for example, does not."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    found, expected = functional(*args, **kwargs), written.meta["val"]
    return (found.dtype, found.shape) == (expected.dtype, expected.shape)


def _is_new(node: Node) -> bool:
    """Whether no other value shares the memory of an operator's output."""
    if not isinstance(node.target, OpOverload):
        return False
    if node.target == _ATEN.batch_norm.default:
        return _has_statistics(node)
    return _without_writing(node) is not None or (_is_functional(node.target) and not _returns_view(node.target))


def _as_mean(node: Node) -> _Equal | None:
    """Return a pooling of all pixels to one as a mean."""
    if node.target != _ATEN.adaptive_avg_pool2d.default or node.args[1] != [1, 1]:
        return None
    return _Equal(_ATEN.mean.dim, (node.args[0], [-1, -2], True))


def _always(_: Node) -> bool:
    return True


def _has_statistics(node: Node) -> bool:
    *_, mean, variance, training, _, _, _ = node.args
    return None not in (mean, variance) and training is False


def _keeps_all_values(node: Node) -> bool:
    return node.args[2] is False  # not in training


def _splits_evenly(node: Node) -> bool:
    size, count = _shape(node)[_argument(node, 2, "dim", 0)], _argument(node, 1, "chunks", 1)
    return isinstance(size, int) and 1 < count <= size and size % count == 0


def _keeps_known_sides(node: Node) -> bool:
    shape = _shape(node)
    last = _argument(node, 2, "end_dim", -1)
    return bool(shape) and all(isinstance(side, int) for side in shape[last % len(shape) + 1 :])


def _shape(node: Node) -> tuple[Any, ...]:
    """Return the shape of the first input, with symbols for unknown sides."""
    first = cast(Node, node.args[0])
    return tuple(first.meta["val"].shape)


def _argument(node: Node, index: int, name: str, default: int) -> int:
    return cast(int, node.args[index] if len(node.args) > index else node.kwargs.get(name, default))


# Composite operators that a second trace replaces, and when their own translation gives the same graph.
_COMPOSITE: Mapping[object, Callable[[Node], bool]] = {
    _ATEN.batch_norm.default: _has_statistics,
    _ATEN.chunk.default: _splits_evenly,
    _ATEN.contiguous.default: _always,
    _ATEN.dropout.default: _keeps_all_values,
    _ATEN.expand_as.default: _always,
    _ATEN.flatten.using_ints: _keeps_known_sides,
    _ATEN.reshape.default: _always,
}
# Views that are not composite.
_VIEWS = frozenset({_ATEN.split.Tensor, _ATEN.t.default, _ATEN.transpose.int, _ATEN.unbind.int})
