"""Fold the order of the channels of tokens into the weights of the norm and the linear layer that read them.

The Gather that reorders them, a copy of all tokens number by number, is gone. See `token_order`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, remove_unused, static_size
from edgevit.export.tensor_parts import ChannelOrder
from edgevit.export.token_order import replace_reordered


def fold_channel_order(model: ir.Model) -> None:
    """Remove each Gather that only reorders the channels of one linear layer, or of a norm and its linear layer."""
    for node in list(model.graph):
        order = _order(node)
        if order is not None and node.inputs[0] is not None:
            replace_reordered(node.outputs[0], node.inputs[0], order, model.graph)
    remove_unused(model)


def _order(gather: ir.Node) -> ChannelOrder | None:
    """Return the permutation in which a Gather takes the entries of the last axis; None for any other node."""
    if gather.op_type != "Gather" or gather.domain or gather.inputs[0] is None:
        return None
    indices, channels = constant(gather.inputs[1]), static_size(gather.inputs[0], -1)
    rank = len(gather.inputs[0].shape or ())
    if indices is None or indices.ndim != 1 or gather.attributes.get_int("axis", 0) not in (-1, rank - 1):
        return None
    is_permutation = channels is not None and np.array_equal(np.sort(indices % channels), np.arange(channels))
    return indices % channels if is_permutation else None
