"""Remove channel shuffles of maps: the weights of the convolutions around them take the channels in another order.

A shuffle y[:, c] = x[:, p(c)] between convolutions changes the order in which a dense convolution after it sums its
inputs, or that of the outputs of a dense one before it; depthwise convolutions and operators with numbers per channel
between them follow, see `channel_order`. A grouped convolution becomes a dense one with zeros between its groups if
that takes no longer than moving the map. After that it absorbs a second shuffle, on its other side, for nothing.

OpenVINO is faster without them, and TensorRT makes fewer kernels; ONNX Runtime is not faster (docs/forms.md).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgevit.export.channel_order import Shuffle, map_shuffle, reorder_readers
from edgevit.export.grouped_convolution import added_macs, group_count, merge_kernels
from edgevit.export.ir_helpers import (
    constant,
    has_constant_weights,
    initializer,
    only_consumer,
    remove_unused,
    replace_value,
)
from edgevit.export.macs import static_shape

_MACS_PER_NUMBER = 100  # multiply-adds that take as long as moving one number


def absorb_shuffle(model: ir.Model) -> None:
    """Remove each channel shuffle that the convolutions before or after it can absorb."""
    for node in list(model.graph):
        shuffle = map_shuffle(node)
        if shuffle is not None and _absorb(shuffle, node, model.graph):
            replace_value(shuffle.output, shuffle.source)
    remove_unused(model)


def _absorb(shuffle: Shuffle, first: ir.Node, graph: ir.Graph) -> bool:
    """Whether the outputs before a shuffle, which begins at `first`, or its readers now have its order."""
    back = np.argsort(shuffle.order)
    limit = _MACS_PER_NUMBER * math.prod(static_shape(shuffle.source))
    return any(
        reorder_readers(shuffle.output, back, graph, max_macs=most) or _reorder_outputs(shuffle, first, graph, most)
        for most in (0, limit)
    )


def _reorder_outputs(shuffle: Shuffle, first: ir.Node, graph: ir.Graph, max_macs: float) -> bool:
    """Let the convolution before a shuffle compute its outputs in the new order; False if it cannot."""
    layer = shuffle.source.producer()
    if layer is None or layer.op_type != "Conv" or layer.domain or not has_constant_weights(layer):
        return False
    groups = group_count(layer)
    if only_consumer(shuffle.source) is not first or (groups > 1 and added_macs(layer) > max_macs):
        return False
    if groups > 1:
        merge_kernels(layer, groups, graph)
    for index, kind in ((1, "weight"), (2, "bias")):
        array = constant(layer.inputs[index]) if index < len(layer.inputs) else None
        if array is not None:
            layer.replace_input_with(index, initializer(graph, f"{layer.name}.{kind}", array[shuffle.order]))
    return True
