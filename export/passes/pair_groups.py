"""Merge pairs of the groups of a convolution that have an odd number of inputs and several outputs, for TensorRT.

In fp16 its kernels read the channels of a group by twos. If a group has one, or three, the compiler appends a channel
of zeros to each, in a kernel that reads the map and writes a larger one. Two groups as one, with zeros between them
(`grouped_convolution.py`), need no such copy, and as many products. Depthwise convolutions with one output per channel
have kernels of their own and stay.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.grouped_convolution import merge_each


def pair_groups(model: ir.Model) -> None:
    """Merge the groups of each convolution with an odd number of inputs and several outputs a group by two."""
    merge_each(model, _merged)


def _merged(groups: int, inputs: int, outputs: int) -> int:
    return 2 if inputs % 2 and outputs > 1 and groups % 2 == 0 else 1
