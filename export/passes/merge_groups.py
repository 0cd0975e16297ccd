"""Merge narrow groups of a convolution until a group fills the vectors of the processor.

Used for ONNX Runtime with AVX2 or AVX-512, and for OpenVINO except in int8 with AVX-512 and no AMX (docs/forms.md).
ONNX Runtime runs a grouped convolution in its blocked layout if the input and output channels of a group are whole
vectors, and otherwise as one small matrix product a group. In OpenVINO, narrow groups leave most of a vector, or of a
tile of AMX, empty. k groups in a row are one group with their kernels on the diagonal and zeros elsewhere: k times the
products, which take less time if k is small. Zeros change no sum of finite values, and are not counted as work of the
model (`export/macs.py`).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, initializer, remove_unused
from edgevit.types import Array

_MAX_MERGED = 4  # groups in one; merging 8 is slower than merging none


def merge_groups(model: ir.Model, *, lanes: int) -> None:
    """Merge the groups of each convolution with fewer than `lanes` outputs a group; depthwise ones stay.

    `lanes` is 0 if merged groups are not faster.
    """
    for node in list(model.graph):
        weight, groups = _grouped(node)
        if weight is None or (merged := _merged(weight, groups, lanes)) == 1:
            continue
        name = f"{node.name}.weight"
        node.replace_input_with(1, initializer(model.graph, name, _block_diagonal(weight, groups, merged)))
        node.attributes["group"] = ir.AttrInt64("group", groups // merged)
    remove_unused(model)


def _grouped(node: ir.Node) -> tuple[Array | None, int]:
    """Return the constant kernels of a grouped convolution, and its groups; None for other nodes."""
    groups = node.attributes.get_int("group", 1) or 1 if node.op_type == "Conv" and not node.domain else 1
    return (constant(node.inputs[1]) if groups > 1 else None), groups


def _merged(weight: Array, groups: int, lanes: int) -> int:
    """Return how many groups become one; 1 if they stay."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    if inputs == 1 or outputs >= lanes:
        return 1
    count = math.lcm(lanes // math.gcd(lanes, inputs), lanes // math.gcd(lanes, outputs))
    return count if count <= _MAX_MERGED and groups % count == 0 else 1


def _block_diagonal(weight: Array, groups: int, merged: int) -> Array:
    """Return the kernels of `groups // merged` groups: (outputs, inputs, ...) to (outputs, merged * inputs, ...)."""
    outputs, inputs, *window = weight.shape
    blocks = weight.reshape(groups // merged, merged, outputs // groups, inputs, *window)
    wide = np.zeros((groups // merged, merged, outputs // groups, merged, inputs, *window), weight.dtype)
    for block in range(merged):
        wide[:, block, :, block] = blocks[:, block]
    return wide.reshape(outputs, merged * inputs, *window)
