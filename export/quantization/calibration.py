"""Collect activation ranges on calibration inputs.

The graph itself computes the minimum and maximum of each tensor, so that only two numbers per tensor leave it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import int64_initializer
from edgevit.export.quantization.dtypes import is_float
from edgevit.files import write_atomically
from edgevit.types import Array, Feeds

_AXES_INPUT_OPSET = 18  # the first opset whose reductions take their axes as an input
# Prepares a graph to run. The returned function maps input arrays to output arrays, both by name.
LoadGraph: TypeAlias = Callable[[OnnxGraph], Callable[[Feeds], Mapping[str, Array]]]
# Called before each input with the number of inputs done and the number of all inputs.
OnFeed: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The smallest and largest value of a tensor on each calibration input, and of its channels on all inputs."""

    lows: tuple[float, ...]
    highs: tuple[float, ...]
    channel_lows: tuple[float, ...] = ()  # (channels,); empty if they were not asked for
    channel_highs: tuple[float, ...] = ()

    @property
    def low(self) -> float:
        return min(self.lows)

    @property
    def high(self) -> float:
        return max(self.highs)

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    def to_json(self) -> list[tuple[float, ...]]:
        channels = [self.channel_lows, self.channel_highs] if self.channel_lows else []
        return [self.lows, self.highs, *channels]

    def divided(self, scales: Array) -> ValueRange:
        """Return the range of the tensor with its channels divided by `scales`, (channels,), on all inputs alike."""
        lows, highs = self.channel_lows / scales, self.channel_highs / scales
        low, high, count = float(lows.min()), float(highs.max()), len(self.lows)
        return ValueRange((low,) * count, (high,) * count, tuple(lows.tolist()), tuple(highs.tolist()))


def cached_ranges(
    graph: OnnxGraph,
    feeds: Sequence[Feeds],
    *,
    load: LoadGraph,
    names: Collection[str],
    cache: Path | None,
    channel_axes: Mapping[str, int] | None = None,
    on_feed: OnFeed | None = None,
) -> dict[str, ValueRange]:
    """Return `collect_ranges`, from the folder `cache` if it was called before with the same graph and inputs.

    A cache that is damaged or not writable is ignored.
    """
    collect = partial(collect_ranges, graph, feeds, load=load, names=names, channel_axes=channel_axes, on_feed=on_feed)
    if cache is None:
        return collect()
    measured = f"{' '.join(sorted(names))}{sorted(channel_axes.items()) if channel_axes else ''}"
    file = cache / f"{measurement_key(graph, feeds, measured)}.json"
    expected = {str(value.name) for value in _float_tensors(graph.model.graph) if value.name in names}
    cached = _read_ranges(file)
    if cached is not None and cached.keys() == expected:
        complete = all(len(found.lows) == len(found.highs) == len(feeds) for found in cached.values())
        axes = channel_axes or {}
        if complete and all(bool(found.channel_lows) == (name in axes) for name, found in cached.items()):
            return cached
    ranges = collect()
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({name: found.to_json() for name, found in ranges.items()}))
    return ranges


def _read_ranges(file: Path) -> dict[str, ValueRange] | None:
    """Read a cache file; None if there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        content = json.loads(file.read_text("utf-8"))
        return {name: ValueRange(*(tuple(map(float, part)) for part in parts)) for name, parts in content.items()}
    return None


def measurement_key(graph: OnnxGraph, feeds: Sequence[Feeds], measured: str) -> str:
    """Hash everything that a measurement on calibration inputs depends on; `measured` describes the measurement."""
    key = hashlib.sha256(b"measurement 3\n")
    key.update(graph.sha256.encode())
    key.update(measured.encode())
    for feed in feeds:
        for name, array in sorted(feed.items()):
            key.update(f"{name} {array.dtype} {array.shape}".encode())
            key.update(np.ascontiguousarray(array).tobytes())
    return key.hexdigest()


def collect_ranges(
    graph: OnnxGraph,
    feeds: Sequence[Feeds],
    *,
    load: LoadGraph,
    names: Collection[str] | None = None,
    channel_axes: Mapping[str, int] | None = None,
    on_feed: OnFeed | None = None,
) -> dict[str, ValueRange]:
    """Return the range of each fp32 tensor by name, without weights; only of those in `names`, if given.

    `channel_axes` names the tensors whose channels are measured too, with the axis along which these lie.

    Raises UsageError without feeds. Raises ExportError if an output has non-finite values at positions that differ
    between inputs, or no finite value. (Masking the same classes with -inf on every input is allowed.)
    """
    if not feeds:
        raise UsageError("no calibration inputs; give a folder of images with --calib DIR")
    model = graph.model.clone()
    outputs = [str(value.name) for value in model.graph.outputs]
    tensors = [value for value in _float_tensors(model.graph) if names is None or value.name in names]
    extremes = {str(value.name): (f"low.{index}", f"high.{index}") for index, value in enumerate(tensors)}
    for value in tensors:
        axis = (channel_axes or {}).get(str(value.name))
        for operator, name in zip(("ReduceMin", "ReduceMax"), extremes[str(value.name)], strict=True):
            _add_extreme(model.graph, value, operator, name, axis, opset=graph.opset)
    common_passes.NameFixPass()(model)
    run = load(OnnxGraph(model))
    found: list[Mapping[str, Array]] = []
    masks = _NonFiniteOutputs(outputs)
    for index, feed in enumerate(feeds):
        if on_feed is not None:
            on_feed(index, len(feeds))
        results = run(feed)
        masks.add(results)
        found.append({name: results[name] for pair in extremes.values() for name in pair})
    masks.require_equal()
    return {
        name: _value_range([each[low] for each in found], [each[high] for each in found])
        for name, (low, high) in extremes.items()
    }


def _value_range(lows: Sequence[Array], highs: Sequence[Array]) -> ValueRange:
    """Return a range from its extremes on each input, scalars or (channels,)."""
    channels = (np.min(lows, 0), np.max(highs, 0)) if lows[0].ndim else ()
    return ValueRange(
        tuple(float(each.min()) for each in lows),
        tuple(float(each.max()) for each in highs),
        *(tuple(each.tolist()) for each in channels),
    )


class _NonFiniteOutputs:
    """The positions at which outputs are not finite, on each input in turn."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._always: dict[str, Array] = {}  # positions at which an output was never finite
        self._counts: list[dict[str, int]] = []  # number of non-finite positions, for each input

    def add(self, results: Mapping[str, Array]) -> None:
        masks = {name: ~np.isfinite(results[name]) for name in self._names}
        self._always = {name: mask & self._always.get(name, mask) for name, mask in masks.items()}
        self._counts.append({name: int(mask.sum()) for name, mask in masks.items()})

    def require_equal(self) -> None:
        """Raise ExportError if an input adds non-finite positions, or an output is never finite."""
        for index, counts in enumerate(self._counts):
            for name, mask in self._always.items():
                if counts[name] > mask.sum() or mask.all():
                    raise ExportError(
                        f"the fp32 model outputs NaN or infinity for calibration input {index} (output {name}); fix "
                        "the model or remove that input"
                    )


def _float_tensors(graph: ir.Graph) -> list[ir.Value]:
    """Return the fp32 tensors that are not weights."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return [value for value in values if is_float(value) and value.name]


def _add_extreme(
    graph: ir.Graph, value: ir.Value, operator: str, name: str, channel_axis: int | None, *, opset: int
) -> None:
    """Add the minimum or maximum of a value to the graph's outputs: a scalar, or those of its channels."""
    if channel_axis is None:
        node, shape = ir.node(operator, [value], {"keepdims": 0}), ir.Shape([])
    else:
        sizes = value.shape or ()
        axis = channel_axis % len(sizes)
        others = [each for each in range(len(sizes)) if each != axis]
        node = reduction(graph, operator, value, others, name=name, opset=opset)
        shape = ir.Shape([sizes[axis]])
    output = node.outputs[0]
    output.name, output.type, output.shape = name, value.type, shape
    graph.append(node)
    graph.outputs.append(output)


def reduction(
    graph: ir.Graph, operator: str, value: ir.Value, axes: Sequence[int], *, name: str, opset: int
) -> ir.Node:
    """Return a node that reduces a value over axes and drops them, such as a ReduceMean; `name` is that of the axes."""
    if opset < _AXES_INPUT_OPSET:
        return ir.node(operator, [value], {"keepdims": 0, "axes": list(axes)})
    return ir.node(operator, [value, int64_initializer(graph, f"{name}.axes", list(axes))], {"keepdims": 0})
