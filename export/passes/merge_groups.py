"""Merge narrow groups of a convolution until a group fills the vectors of the processor.

Used for ONNX Runtime with AVX2 or AVX-512, and for OpenVINO except in int8 with AVX-512 and no AMX (docs/forms.md).
ONNX Runtime runs a grouped convolution in its blocked layout if the input and output channels of a group are whole
vectors, and otherwise as one small matrix product a group. In OpenVINO, narrow groups leave most of a vector, or of a
tile of AMX, empty. k groups in a row are one group with zeros between them (`grouped_convolution.py`): k times the
products, which take less time if k is small.
"""

from __future__ import annotations

import functools
import math

import onnx_ir as ir

from edgevit.export.grouped_convolution import merge_each

_MAX_MERGED = 4  # groups in one; merging 8 is slower than merging none


def merge_groups(model: ir.Model, *, lanes: int) -> None:
    """Merge the groups of each convolution with fewer than `lanes` outputs a group; depthwise ones stay."""
    merge_each(model, functools.partial(_merged, lanes=lanes))


def _merged(groups: int, inputs: int, outputs: int, *, lanes: int) -> int:
    if inputs == 1 or outputs >= lanes:
        return 1
    count = math.lcm(lanes // math.gcd(lanes, inputs), lanes // math.gcd(lanes, outputs))
    return count if count <= _MAX_MERGED and groups % count == 0 else 1
