"""Lower additive attention masks so far that the masked weights are zero and not denormal numbers.

softmax(s + m) with a constant m that is 0 for some tokens and -100 for others, as Swin's shifted windows have it: the
weight of a masked token is exp(-100 + difference of the scores) = 4e-44, which float32 represents as a denormal number
(below 1.2e-38). Products with denormal numbers take Intel processors some hundred cycles: in ONNX Runtime half of the
attention's time in swin_t. With the mask `_FAR` below the largest entry of its row, exp is zero.

A weight that is set to zero was below exp(`_MASKED`) = 2e-35 of the largest one at equal scores. It is lost to the
rounding of float32 (6e-8) unless the scores of two tokens differ by more than 63, which would defeat the mask itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, initializer, is_over_last_axis, only_consumer, static_size
from edgevit.types import Array

_MASKED = 80.0  # an entry at least as far below the largest one of its row is a mask
_UNDERFLOWS = 200.0  # exp of an entry that far below is zero as it is
_FAR = 1e4  # fits in float16


def underflow_masks(model: ir.Model) -> None:
    """Lower the masks that are added to the scores of each Softmax, in place."""
    lowered: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "Softmax" and not node.domain and is_over_last_axis(node):
            for addition, index in _added_constants(node.inputs[0]):
                _lower(addition, index, lowered, model.graph)


def _added_constants(scores: ir.Value | None) -> Iterator[tuple[ir.Node, int]]:
    """Yield the Adds of constants that the scores come through, with the index of the constant.

    Reshapes in between keep the last axis. Scores that anything else reads end the search, since they would change.
    """
    while scores is not None and only_consumer(scores) is not None:
        node = scores.producer()
        if node is None:
            return
        if node.op_type == "Add":
            index = next((index for index, value in enumerate(node.inputs) if constant(value) is not None), None)
            if index is None:
                return
            yield node, index
            scores = node.inputs[1 - index]
        elif (
            node.op_type == "Reshape"
            and static_size(node.inputs[0], -1) == static_size(node.outputs[0], -1) is not None
        ):
            scores = node.inputs[0]
        else:
            return


def _lower(addition: ir.Node, index: int, lowered: dict[ir.Value, ir.Value], graph: ir.Graph) -> None:
    value = addition.inputs[index]
    mask = constant(value)
    if value is None or mask is None or mask.ndim == 0:
        return
    if value not in lowered:
        far = _lowered(mask)
        lowered[value] = value if far is mask else initializer(graph, f"{value.name}_far", far)
    addition.replace_input_with(index, lowered[value])


def _lowered(mask: Array) -> Array:
    """Return the mask (..., tokens) with its masked entries `_FAR` below the row's largest; itself if it has none."""
    largest = mask.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # rows of -inf
        below = largest - mask
    masked = (below >= _MASKED) & (below < _UNDERFLOWS)
    return np.where(masked, largest - _FAR, mask).astype(mask.dtype) if masked.any() else mask
