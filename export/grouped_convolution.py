"""Merge groups of a convolution: their kernels on the diagonal of a wider group, and zeros elsewhere.

Zeros change no sum of finite values, and are not counted as work of the model (`macs.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, initializer, remove_unused
from edgevit.export.macs import MERGED, node_macs
from edgevit.types import Array


def group_count(node: ir.Node) -> int:
    """Return the groups of a convolution; 1 for other nodes."""
    return (node.attributes.get_int("group", 1) or 1) if node.op_type == "Conv" and not node.domain else 1


def added_macs(node: ir.Node) -> float:
    """Return the multiply-adds that a convolution has more if all its groups are one; infinity if that is unknown."""
    return (node_macs(node) or math.inf) * (group_count(node) - 1)


def merge_each(model: ir.Model, merged: Callable[[int, int, int], int]) -> None:
    """Merge groups of each grouped convolution with constant kernels.

    `merged` returns how many groups become one, 1 if they stay, from the number of groups and the inputs and outputs of
    a group.
    """
    for node in list(model.graph):
        groups = group_count(node)
        weight = constant(node.inputs[1]) if groups > 1 else None
        if weight is not None and (count := merged(groups, weight.shape[1], weight.shape[0] // groups)) > 1:
            merge_kernels(node, count, model.graph)
    remove_unused(model)


def merge_kernels(node: ir.Node, merged: int, graph: ir.Graph) -> None:
    """Let each `merged` groups in a row of a convolution with constant kernels become one."""
    groups, weight = group_count(node), constant(node.inputs[1])
    assert weight is not None
    name = f"{node.name}.weight"
    node.replace_input_with(1, initializer(graph, name, _block_diagonal(weight, groups, merged)))
    node.attributes["group"] = ir.AttrInt64("group", groups // merged)
    if merged == groups:
        node.metadata_props[MERGED] = str(groups)


def _block_diagonal(weight: Array, groups: int, merged: int) -> Array:
    """Return the kernels of `groups // merged` groups: (outputs, inputs, ...) to (outputs, merged * inputs, ...)."""
    outputs, inputs, *window = weight.shape
    blocks = weight.reshape(groups // merged, merged, outputs // groups, inputs, *window)
    wide = np.zeros((groups // merged, merged, outputs // groups, merged, inputs, *window), weight.dtype)
    for block in range(merged):
        wide[:, block, :, block] = blocks[:, block]
    return wide.reshape(outputs, merged * inputs, *window)
