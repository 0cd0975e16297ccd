"""Extract overlapping windows as four slices of a padded map: T2T-ViT's tokens, the outputs of F.unfold.

With s < k <= 2s, each window of k x k pixels, one every s pixels, is a block of s x s pixels, the first k - s columns
of the block to its right, as many rows of the block below, and a corner of the block below and to the right. Four
slices and one concatenation copy them as rows of many numbers. The windows have their pixels in the order of these
parts then, which goes into the weights behind them (see `token_order`).

F.unfold is exported as two Gathers, by rows and by columns, and a Transpose that copies number by number; others write
windows as overlapping rows and columns. The operators behind the padding that move elements are run with numbered
elements, so any of them are found that make windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    NCHW_TO_NHWC,
    constant,
    insert,
    insert_slice,
    int64_initializer,
    module_of,
    remove_unused,
    sizes_of_image,
)
from edgevit.export.moves import follow, images_of, run_move
from edgevit.export.tensor_parts import ChannelOrder, mark_channel_order
from edgevit.export.token_order import replace_reordered
from edgevit.types import Array

_MAX_ELEMENTS = 1 << 26  # of the numbered windows, 256 MiB


def slice_windows(model: ir.Model) -> None:
    """Replace the operators that move padded maps into windows whose pixels a linear layer reads in any order."""
    for node in list(model.graph):
        padded = _padded_map(node)
        for windows in _windows(padded) if padded is not None else ():
            _Slices(windows, model.graph).apply()
            remove_unused(model)  # operators that still read the windows that these were made of


@dataclass(frozen=True, slots=True, kw_only=True)
class _PaddedMap:
    """A map with rows and columns of a constant around it."""

    pad: ir.Node
    is_channels_last: bool
    images: int
    height: int
    width: int
    channels: int

    @property
    def output(self) -> ir.Value:
        return self.pad.outputs[0]

    @property
    def numbers(self) -> Array:
        """Return the index of each element in the map with channels last, in the shape of the map."""
        shape = (self.images, self.height, self.width, self.channels)
        numbers = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        return numbers if self.is_channels_last else numbers.transpose(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class _Windows:
    """Tokens (N, windows, k * k * C) that hold windows of a map."""

    map: _PaddedMap
    tokens: ir.Value
    kernel: int
    stride: int
    order: ChannelOrder  # of each channel of the tokens in the concatenation of the four parts

    @property
    def rows(self) -> int:
        return self.map.height // self.stride - 1

    @property
    def columns(self) -> int:
        return self.map.width // self.stride - 1


def _padded_map(node: ir.Node) -> _PaddedMap | None:
    """Return the map that a node pads with a constant; None for other nodes."""
    if node.op_type != "Pad" or node.domain or node.attributes.get_string("mode", "constant") != "constant":
        return None
    pads, sizes, shape = constant(node.inputs[1]), sizes_of_image(node.outputs[0]), node.outputs[0].shape
    if pads is None or len(node.inputs) > 3 or len(sizes) != 3 or shape is None:  # 3: axes of the pads
        return None
    is_channels_last = bool(pads[1] or pads[5])
    height, width, channels = sizes if is_channels_last else (*sizes[1:], sizes[0])
    return _PaddedMap(
        pad=node,
        is_channels_last=is_channels_last,
        images=images_of(node.outputs[0]),
        height=height,
        width=width,
        channels=channels,
    )


def _windows(padded: _PaddedMap) -> list[_Windows]:
    """Return the windows that the operators behind the padding make and others read, those made of others first."""
    if 4 * math.prod(sizes_of_image(padded.output)) * padded.images > _MAX_ELEMENTS:
        return []
    moved = follow(padded.output, padded.numbers)
    read = [value for value in moved if any(use.node.outputs[0] not in moved for use in value.uses())]
    found = [_windows_in(value, moved[value], padded) for value in reversed(read)]
    return [windows for windows in found if windows is not None]


def _windows_in(tokens: ir.Value, numbers: Array, padded: _PaddedMap) -> _Windows | None:
    """Return the windows whose elements have these numbers, (images, windows, k * k * C); None if there are none."""
    channels, width = padded.channels, padded.width
    if numbers.ndim != 3 or numbers.shape[1] < 2:
        return None
    kernel = math.isqrt(numbers.shape[2] // channels)
    stride = int(numbers[0, 1, 0] - numbers[0, 0, 0]) // channels
    if stride < 1 or padded.height % stride or width % stride:
        return None
    # Places of the first window's numbers, and the steps to the other windows and images.
    row, column, channel = np.unravel_index(numbers[0, 0], (padded.images * padded.height, width, channels))
    if max(row.max(), column.max()) >= kernel:
        return None
    down = np.arange(padded.height // stride - 1)[:, np.newaxis] * stride * width * channels
    right = np.arange(width // stride - 1) * stride * channels
    image = np.arange(padded.images)[:, np.newaxis, np.newaxis] * padded.height * width * channels
    if not np.array_equal(numbers, image + (down + right).reshape(-1, 1) + numbers[0, 0]):
        return None
    order = _places_in_parts(kernel, stride)[row, column] * channels + channel
    in_order = np.arange(channels * kernel**2)
    if not np.array_equal(np.sort(order), in_order) or np.array_equal(order, in_order):
        return None  # not all pixels of the windows, or windows that are in the order of the parts already
    return _Windows(padded, tokens, kernel, stride, order)


def _places_in_parts(kernel: int, stride: int) -> Array:
    """Return the place of each pixel of a window, (k, k), in the concatenation of its four parts."""
    halves = (slice(0, stride), slice(stride, kernel))
    pixels = np.arange(kernel**2).reshape(kernel, kernel)
    in_parts = [pixels[rows, columns].ravel() for rows in halves for columns in halves]
    return np.argsort(np.concatenate(in_parts)).reshape(kernel, kernel)


class _Slices:
    """Inserts the four slices in the place of the operators that made windows."""

    def __init__(self, windows: _Windows, graph: ir.Graph) -> None:
        self._map, self._windows, self._graph = windows.map, windows, graph
        before = windows.tokens.producer()
        assert before is not None and windows.map.output.shape is not None
        self._before = before
        self._batch = windows.map.output.shape[0]
        self._name = f"{module_of(before)}/windows".lstrip("/")
        self._insert = partial(insert, before=before, graph=graph, like=windows.tokens)

    def apply(self) -> None:
        """Replace the windows if a linear layer alone reads them; what is inserted stays unread otherwise."""
        tokens, order = self._tokens(), self._windows.order
        if replace_reordered(self._windows.tokens, tokens, order, self._graph):
            mark_channel_order(tokens, order)

    def _tokens(self) -> ir.Value:
        """Insert the windows with their pixels in the order of the four parts, (N, windows, k * k * C)."""
        blocks = self._blocks()
        parts = [self._part(blocks, down=down, right=right) for down in (False, True) for right in (False, True)]
        rows, columns = self._windows.rows, self._windows.columns
        channels = self._windows.kernel**2 * self._map.channels
        node = ir.node("Concat", parts, {"axis": 3}, name=f"{self._name}_parts")
        windows = self._insert(node, shape=ir.Shape([self._batch, rows, columns, channels]))
        return self._reshape("tokens", windows, [self._batch, rows * columns, channels])

    def _blocks(self) -> ir.Value:
        """Insert the blocks of s x s pixels, (N, H / s, W / s, s, s * C)."""
        stride, channels = self._windows.stride, self._map.channels
        rows, columns, length = self._map.height // stride, self._map.width // stride, stride * channels
        stacked = self._batch * rows if isinstance(self._batch, int) else None
        value = self._reshape("rows", self._channels_last(), [stacked, stride, columns, length])
        value = self._transpose("columns", value, [0, 2, 1, 3])  # (N * H / s, W / s, s, s * C)
        return self._reshape("blocks", value, [self._batch, rows, columns, stride, length])

    def _part(self, blocks: ir.Value, *, down: bool, right: bool) -> ir.Value:
        """Insert one of the four parts of all windows, (N, rows, columns, numbers).

        `down` and `right` choose the blocks below and to the right.
        """
        stride, channels = self._windows.stride, self._map.channels
        rest = self._windows.kernel - stride
        rows, columns = self._windows.rows, self._windows.columns
        height, width = rest if down else stride, channels * (rest if right else stride)
        # Start and end by axis; whole axes are not sliced.
        ranges = {1: (int(down), rows + down), 2: (int(right), columns + right)}
        ranges |= {3: (0, height)} if down else {}
        ranges |= {4: (0, width)} if right else {}
        name = f"{self._name}_part_{int(down)}{int(right)}"
        part = insert_slice(blocks, ranges, before=self._before, graph=self._graph, name=name)
        return self._reshape(f"part_{int(down)}{int(right)}_flat", part, [self._batch, rows, columns, height * width])

    def _channels_last(self) -> ir.Value:
        """Return the padded map with channels last, inserted if it has them first."""
        if self._map.is_channels_last:
            return self._map.output
        value = self._source_channels_last()
        _, amounts, *rest = self._map.pad.inputs
        pads = constant(amounts)
        assert pads is not None
        order = [*NCHW_TO_NHWC, *(4 + axis for axis in NCHW_TO_NHWC)]
        last = int64_initializer(self._graph, f"{self._name}.pads", pads[order].tolist())
        node = ir.node("Pad", [value, last, *rest], {"mode": "constant"}, name=f"{self._name}_padding")
        height, width, channels = self._map.height, self._map.width, self._map.channels
        return self._insert(node, shape=ir.Shape([self._batch, height, width, channels]))

    def _source_channels_last(self) -> ir.Value:
        """Return the map before the padding with channels last: tokens in another shape if it was made of them."""
        source = self._map.pad.inputs[0]
        channels, height, width = sizes_of_image(source)
        assert source is not None
        tokens = _tokens_of(source, self._map.images)
        if tokens is not None:
            return self._reshape("map", tokens, [self._batch, height, width, channels])
        return self._transpose("map", source, NCHW_TO_NHWC)

    def _reshape(self, step: str, value: ir.Value, sizes: list[int | ir.SymbolicDim | None]) -> ir.Value:
        shape = int64_initializer(
            self._graph, f"{self._name}_{step}.shape", [size if isinstance(size, int) else -1 for size in sizes]
        )
        node = ir.node("Reshape", [value, shape], name=f"{self._name}_{step}")
        return self._insert(node, shape=ir.Shape(sizes))

    def _transpose(self, step: str, value: ir.Value, order: list[int]) -> ir.Value:
        assert value.shape is not None
        node = ir.node("Transpose", [value], {"perm": order}, name=f"{self._name}_{step}")
        return self._insert(node, shape=ir.Shape([value.shape[axis] for axis in order]))


def _tokens_of(source: ir.Value, images: int) -> ir.Value | None:
    """Return the value before a map (N, C, H, W) that has its elements in the order (N, H, W, C); None if none has."""
    nodes: list[ir.Node] = []
    value, found = source, None
    while (node := value.producer()) is not None and node.op_type in ("Reshape", "Transpose") and not node.domain:
        before = node.inputs[0]
        sizes = sizes_of_image(before)
        if before is None or not sizes:
            break
        nodes.insert(0, node)
        value, numbers = before, np.arange(images * math.prod(sizes)).reshape(images, *sizes)
        moved = {value: numbers}
        for each in nodes:
            outputs = run_move(each, moved)
            if outputs is None:
                return found
            moved |= zip(each.outputs, outputs, strict=True)
        if np.array_equal(moved[source].transpose(NCHW_TO_NHWC).ravel(), numbers.ravel()):
            found = value
    return found
