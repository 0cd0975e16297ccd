"""Multiply-accumulate operations (MACs) of layers, from their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgevit.types import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """The work of one inference of a graph, counted from its shapes."""

    batch: int  # images that were counted
    macs: int  # of convolutions and matmuls, those of attention included
    weight_bytes: int  # of all constants
    io_bytes: int  # of inputs and outputs
    activation_bytes: int  # results of convolutions and matmuls, written and read once
    node_macs: Mapping[str, int] = field(default_factory=dict)  # of the nodes that have some, by name

    def for_batch(self, batch: int) -> ModelWork:
        """Return the work of another batch: all but the weights grows with it."""
        return replace(
            self,
            batch=batch,
            macs=self.macs * batch // self.batch,
            io_bytes=self.io_bytes * batch // self.batch,
            activation_bytes=self.activation_bytes * batch // self.batch,
            node_macs={name: macs * batch // self.batch for name, macs in self.node_macs.items()},
        )

    def in_16_bits(self) -> ModelWork:
        """Return the work of an fp32 graph that runs in bf16: all but inputs and outputs has half the bytes."""
        return replace(self, weight_bytes=self.weight_bytes // 2, activation_bytes=self.activation_bytes // 2)


def convolution_macs(out: Shape, weight: Shape, channels: int) -> int | None:
    """Return the MACs of a convolution, grouped or not; None if a shape is empty.

    `out` is the output shape and `weight` the shape of all weights, both in any layout; `channels` is the number of
    output channels. For a transposed convolution pass its input shape and input channels instead.
    """
    return math.prod(out) * (math.prod(weight) // channels) if out and weight and channels else None


def matmul_macs(left: Shape, out: Shape) -> int | None:
    """Return the MACs of a matmul by NumPy's rules; None if the shapes do not belong to one.

    `left` is (..., M, K), its transpose (..., K, M), or, as ONNX Runtime's FusedMatMul reads with strides, either with
    its first of these axes before the batch's, and `out` is (..., M, N).
    """
    if not left or len(out) < len(left):  # times a vector
        return math.prod(left) if left and out == left[:-1] else None
    if len(left) == 1:
        return math.prod(out) * left[0]
    rows, batch = out[-2], zip(reversed(left[:-2]), reversed(out[:-2]), strict=False)
    if rows in left[-2:] and all(size in (1, out_size) for size, out_size in batch):
        return math.prod(out) * (left[-1] if left[-2] == rows else left[-2])
    if left[1:-1] == out[:-2] and rows in (left[0], left[-1]):
        return math.prod(out) * (left[-1] if left[0] == rows else left[0])
    return None


def attention_macs(query: Shape, key: Shape, out: Shape) -> int:
    """Return the MACs of both matmuls of attention.

    `query` and `out` are (..., M, D) in one layout, with heads joined or apart, and `key` is (..., N, D).
    """
    return (math.prod(query) + math.prod(out)) * key[-2]
