"""A Slice that keeps everything is the identity: from 0 to the end, or past it, in steps of 1.

PyTorch writes `x[:, 4:]` as two slices, the first of which keeps the whole batch; with a dynamic batch the constant
folder cannot know that it does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, remove_unused

_END = 2**31 - 1  # exporters write the end of an unknown axis as the largest 32- or 64-bit integer


def eliminate_slices(model: ir.Model) -> None:
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Slice" and source is not None and _keeps_everything(node):
            _drop(node, source)
    remove_unused(model)


def _drop(node: ir.Node, source: ir.Value) -> None:
    if not node.outputs[0].is_graph_output():  # an output needs a node that makes it
        node.outputs[0].replace_all_uses_with(source)


def _keeps_everything(node: ir.Node) -> bool:
    values = [constant(value) for value in node.inputs[1:]]
    if len(values) < 2 or any(value is None for value in values):
        return False
    starts, ends, *rest = (np.asarray(value) for value in values)
    axes = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
    sizes = [_size(node.inputs[0], int(axis)) for axis in axes]
    return bool((starts == 0).all() and (steps == 1).all() and all(e >= s for e, s in zip(ends, sizes, strict=True)))


def _size(value: ir.Value | None, axis: int) -> int:
    shape = value.shape if value is not None else None
    size = shape[axis] if shape is not None else None
    return size if isinstance(size, int) else _END
