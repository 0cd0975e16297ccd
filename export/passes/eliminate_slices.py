"""Remove Slice nodes that keep everything: from 0 to the end or beyond, in steps of 1.

PyTorch exports `x[:, 4:]` as two slices, the first of which keeps the whole batch. Constant folding does not remove it
if the batch is dynamic. onnxscript's `collapse_slices` rules require a Slice with five inputs and a single axis.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, remove_unused

_END = 2**31 - 1  # the end of an axis of unknown length is exported as the largest 32- or 64-bit integer


def eliminate_slices(model: ir.Model) -> None:
    """Replace the output of each such Slice by its input."""
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Slice" and source is not None and _keeps_everything(node):
            _bypass(node, source)
    remove_unused(model)


def _bypass(node: ir.Node, source: ir.Value) -> None:
    if not node.outputs[0].is_graph_output():  # a graph output needs a producer
        node.outputs[0].replace_all_uses_with(source)


def _keeps_everything(node: ir.Node) -> bool:
    values = [constant(value) for value in node.inputs[1:]]
    if len(values) < 2 or any(value is None for value in values):
        return False
    starts, ends, *rest = (np.asarray(value) for value in values)
    axes = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
    sizes = [_length(node.inputs[0], int(axis)) for axis in axes]
    return bool((starts == 0).all() and (steps == 1).all() and all(e >= s for e, s in zip(ends, sizes, strict=True)))


def _length(value: ir.Value | None, axis: int) -> int:
    shape = value.shape if value is not None else None
    size = shape[axis] if shape is not None else None
    return size if isinstance(size, int) else _END
