"""Windows of pooling operators: the effect of `ceil_mode` on each axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgevit.export.ir_helpers import static_size

POOLINGS = frozenset({"AveragePool", "LpPool", "MaxPool"})


@dataclass(frozen=True, slots=True)
class PoolAxis:
    """One spatial axis of a pooling operator; `size` is None if it is dynamic."""

    size: int | None
    before: int  # padding
    after: int
    kernel: int  # extent of the window, dilation included
    stride: int

    @property
    def has_partial_window(self) -> bool:
        """Whether `ceil_mode` adds a window that ends after the padding; True if the size is unknown."""
        return self.size is None or self._rest != 0

    @property
    def skips_last_window(self) -> bool:
        """Whether the window that `ceil_mode` adds starts after the input, so that ONNX and PyTorch leave it out."""
        if self.size is None or not self._rest:
            return False
        start = (self._span // self.stride + 1) * self.stride
        return start >= self.size + self.before

    @property
    def keeps_partial_window(self) -> bool:
        """Whether `ceil_mode` makes the result longer; True if the size is unknown."""
        return self.has_partial_window and not self.skips_last_window

    @property
    def _span(self) -> int:
        assert self.size is not None
        return self.size + self.before + self.after - self.kernel

    @property
    def _rest(self) -> int:
        return self._span % self.stride


def uses_ceil_mode(node: ir.Node) -> bool:
    """Whether a node pools with `ceil_mode` and explicit padding."""
    explicit = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    return node.op_type in POOLINGS and explicit and bool(node.attributes.get_int("ceil_mode", 0))


def counts_partial_windows(node: ir.Node) -> bool:
    """Whether an average pooling counts its padding, and a window ends after it."""
    counts_padding = bool(node.attributes.get_int("count_include_pad", 0)) and any(padding(node))
    return counts_padding and uses_ceil_mode(node) and any(axis.has_partial_window for axis in pool_axes(node))


def pool_axes(node: ir.Node) -> tuple[PoolAxis, ...]:
    """Return the spatial axes of a pooling operator with explicit padding."""
    return tuple(_axes(node))


def padding(node: ir.Node) -> list[int]:
    """Return the padding before each spatial axis, then after each, as in the attribute `pads`."""
    kernel = node.attributes["kernel_shape"].as_ints()
    return list(node.attributes.get_ints("pads", [0] * (2 * len(kernel))))


def _axes(node: ir.Node) -> Iterator[PoolAxis]:
    kernel = node.attributes["kernel_shape"].as_ints()
    rank, pads = len(kernel), padding(node)
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    for axis in range(rank):
        yield PoolAxis(
            size=static_size(node.inputs[0], axis + 2),
            before=pads[axis],
            after=pads[rank + axis],
            kernel=dilations[axis] * (kernel[axis] - 1) + 1,
            stride=strides[axis],
        )
