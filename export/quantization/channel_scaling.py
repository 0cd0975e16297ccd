"""Scale the channels of a tensor by powers of two, where the layers on both sides of it make up for each other.

The producer of a tensor divides its channels by s, its readers multiply the weights of those channels by s. Since a
power of two only changes the exponents of float numbers, fp32 results stay equal bit by bit. `equalization.py` scales
channels between two convolutions, `smoothing.py` those behind a norm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, initializer
from edgevit.types import Array

_MAX_EXPONENT = 20  # of a scale; keeps weights far from the limits of float32


def power_of_two_scales(magnitudes: Array, weights: Array, *, alpha: float) -> Array:
    """Return the divisors of an activation's channels, (channels,) float32: powers of two around 1.

    s = a^alpha / w^(1 - alpha), with the largest `magnitudes` a of the channels and w of the `weights` that read them
    (SmoothQuant, Xiao et al., ICML 2023, equation 4): 1 makes all activations equally large, 0 all weights. Channels
    that are always zero have the mean exponent of the others.
    """
    used = (magnitudes > 0) & (weights > 0)
    a, w = (np.log2(np.where(used, each, 1).astype(np.float64)) for each in (magnitudes, weights))
    exponents = alpha * a - (1 - alpha) * w
    exponents = np.where(used, exponents, exponents[used].mean() if used.any() else 0)
    steps = np.clip(np.rint(exponents - np.median(exponents)), -_MAX_EXPONENT, _MAX_EXPONENT)
    scales: Array = np.exp2(steps).astype(np.float32)
    return scales


def channel_magnitudes(array: Array, axis: int) -> Array:
    """Return the largest magnitude of each channel, (channels,), of an array with its channels at an axis."""
    others = tuple(index for index in range(array.ndim) if index != axis % array.ndim)
    magnitudes: Array = np.abs(array).max(others)
    return magnitudes


def multiply_channels(graph: ir.Graph, node: ir.Node, index: int, scales: Array, axis: int) -> None:
    """Multiply the channels, along an axis, of a constant input of a node. Other readers keep the old constant."""
    value, array = node.inputs[index], constant(node.inputs[index])
    assert value is not None and array is not None
    scaled = initializer(graph, f"{value.name}_scaled", array * along(axis, scales, array.ndim))
    node.replace_input_with(index, scaled)


def along(axis: int, scales: Array, rank: int) -> Array:
    """Return the scales of channels as an array of a rank, with the channels at an axis."""
    return scales.reshape([-1 if index == axis % rank else 1 for index in range(rank)])
