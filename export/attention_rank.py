"""Reshape the calls of scaled_dot_product_attention that are not 4D: torch.onnx translates (N, heads, L, E) only.

Attention is independent over the axes before the last two, so that merging them, or adding one, changes no value:

* (N, L, E): an axis of one head is inserted before the call and removed after it.
* (N, M, ..., heads, L, E): all axes before the heads are merged and split again. Keys, values and a mask that
  broadcast over the merged axes are expanded first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

_ATEN = torch.ops.aten
_ATTENTION = _ATEN.scaled_dot_product_attention.default
_SEQUENCE_AXES = 3  # heads, positions, channels
_RANK = 4


def reshape_attention_to_4d(program: torch.export.ExportedProgram) -> None:
    """Rewrite the calls in place; a call that is 4D already, or whose inputs differ in rank, is left alone."""
    graph = program.graph_module.graph
    changed = False
    for node in graph.find_nodes(op="call_function", target=_ATTENTION):
        ranks = {_value(each).ndim for each in node.args[:3]}
        if len(ranks) == 1 and (rank := ranks.pop()) >= _SEQUENCE_AXES and rank != _RANK:
            result = _reshape(_Call(graph, node), rank)
            program.graph_signature.replace_all_uses(node.name, result.name)  # it may be an output
            changed = True
    if changed:
        graph.eliminate_dead_code()
        program.graph_module.recompile()


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of attention, and the place where nodes are inserted before it."""

    graph: Graph
    node: Node

    def insert(self, operator: Callable[..., Any], *arguments: Any, **options: Any) -> Node:
        """Insert a node before the call, with its shapes and the call's place in the modules."""
        with self.graph.inserting_before(self.node):
            inserted = self.graph.call_function(operator, arguments, options)
        inserted.meta = {key: value for key, value in self.node.meta.items() if key != "tensor_meta"}
        values, named = _values(arguments), {name: _values(option) for name, option in options.items()}
        with _value(self.node).fake_mode:
            inserted.meta["val"] = operator(*values, **named)
        return inserted

    def attention(self, inputs: Sequence[Node], mask: Node | None) -> Node:
        """Insert the same call for other inputs."""
        rest = self.node.args[4:]
        options = {name: value for name, value in self.node.kwargs.items() if name != "attn_mask"}
        return self.insert(_ATTENTION, *inputs, mask, *rest, **options)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(each for each in self.node.args[:3] if isinstance(each, Node))

    @property
    def mask(self) -> Node | None:
        mask = self.node.args[3] if len(self.node.args) > 3 else self.node.kwargs.get("attn_mask")
        return mask if isinstance(mask, Node) else None


def _reshape(call: _Call, rank: int) -> Node:
    """Replace a call by one of 4D inputs; return its result."""
    if rank == _SEQUENCE_AXES:
        inputs = [call.insert(_ATEN.unsqueeze.default, each, 1) for each in call.inputs]
        mask = call.mask
        if mask is not None and _value(mask).ndim == _SEQUENCE_AXES:
            mask = call.insert(_ATEN.unsqueeze.default, mask, 1)
        result = call.insert(_ATEN.squeeze.dim, call.attention(inputs, mask), 1)
    else:
        merged = rank - _SEQUENCE_AXES
        sizes = [_size(call, axis) for axis in range(merged)]
        inputs = [_merge(call, each, sizes) for each in call.inputs]
        mask = call.mask
        if mask is not None and _value(mask).ndim > _SEQUENCE_AXES:
            mask = _merge(call, mask, sizes)
        result = call.insert(_ATEN.unflatten.int, call.attention(inputs, mask), 0, sizes)
    call.node.replace_all_uses_with(result)
    call.graph.erase_node(call.node)
    return result


def _size(call: _Call, axis: int) -> int | Node:
    """Return the size of an axis of the result: a number, or a node if it is dynamic."""
    sizes = [_value(each).shape[axis] for each in call.inputs]
    largest = max(range(len(sizes)), key=lambda index: not (isinstance(sizes[index], int) and sizes[index] == 1))
    size = sizes[largest]
    return size if isinstance(size, int) else call.insert(_ATEN.sym_size.int, call.inputs[largest], axis)


def _merge(call: _Call, tensor: Node, sizes: Sequence[int | Node]) -> Node:
    """Merge the axes before (heads, L, E) into one, of which `sizes` are the sizes after broadcasting."""
    shape = _value(tensor).shape
    own = shape[:-_SEQUENCE_AXES]
    if list(own) != [size if isinstance(size, int) else _value(size) for size in sizes]:
        tensor = call.insert(_ATEN.expand.default, tensor, [*sizes, *([-1] * _SEQUENCE_AXES)])
    return call.insert(_ATEN.flatten.using_ints, tensor, 0, len(sizes) - 1)


def _values(argument: Any) -> Any:
    """Return an argument with the fake tensors and sizes of its nodes."""
    if isinstance(argument, list | tuple):
        return [_values(each) for each in argument]
    return _value(argument) if isinstance(argument, Node) else argument


def _value(node: Any) -> Any:
    return node.meta["val"]
