"""Collect activation ranges on calibration inputs.

The graph itself computes the minimum and maximum of each tensor, so that only two numbers per tensor leave it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.dtypes import is_float
from edgevit.files import write_atomically
from edgevit.types import Array, Feeds

# Prepares a graph to run. The returned function maps input arrays to output arrays, both by name.
LoadGraph: TypeAlias = Callable[[OnnxGraph], Callable[[Feeds], Mapping[str, Array]]]
# Called before each input with the number of inputs done and the number of all inputs.
OnFeed: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The smallest and largest value of a tensor on each calibration input."""

    lows: tuple[float, ...]
    highs: tuple[float, ...]

    @property
    def low(self) -> float:
        return min(self.lows)

    @property
    def high(self) -> float:
        return max(self.highs)

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))


def cached_ranges(
    graph: OnnxGraph,
    feeds: Sequence[Feeds],
    *,
    load: LoadGraph,
    names: Collection[str],
    cache: Path | None,
    on_feed: OnFeed | None = None,
) -> dict[str, ValueRange]:
    """Return `collect_ranges`, from the folder `cache` if it was called before with the same graph and inputs.

    A cache that is damaged or not writable is ignored.
    """
    if cache is None:
        return collect_ranges(graph, feeds, load=load, names=names, on_feed=on_feed)
    file = cache / f"{measurement_key(graph, feeds, ' '.join(sorted(names)))}.json"
    expected = {str(value.name) for value in _float_tensors(graph.model.graph) if value.name in names}
    cached = _read_ranges(file)
    if cached is not None and cached.keys() == expected:
        complete = all(len(found.lows) == len(found.highs) == len(feeds) for found in cached.values())
        if complete:
            return cached
    ranges = collect_ranges(graph, feeds, load=load, names=names, on_feed=on_feed)
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({name: [found.lows, found.highs] for name, found in ranges.items()}))
    return ranges


def _read_ranges(file: Path) -> dict[str, ValueRange] | None:
    """Read a cache file; None if there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        content = json.loads(file.read_text("utf-8"))
        return {
            name: ValueRange(tuple(map(float, lows)), tuple(map(float, highs)))
            for name, (lows, highs) in content.items()
        }
    return None


def measurement_key(graph: OnnxGraph, feeds: Sequence[Feeds], measured: str) -> str:
    """Hash everything that a measurement on calibration inputs depends on; `measured` says of what it is."""
    key = hashlib.sha256(b"measurement 2\n")
    key.update(graph.to_bytes())
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
    on_feed: OnFeed | None = None,
) -> dict[str, ValueRange]:
    """Return the range of each fp32 tensor by name, without weights; only of those in `names`, if given.

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
        low, high = extremes[str(value.name)]
        _add_extreme(model.graph, value, "ReduceMin", low)
        _add_extreme(model.graph, value, "ReduceMax", high)
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
        name: ValueRange(tuple(float(each[low]) for each in found), tuple(float(each[high]) for each in found))
        for name, (low, high) in extremes.items()
    }


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


def _add_extreme(graph: ir.Graph, value: ir.Value, operator: str, name: str) -> None:
    """Add the minimum or maximum of a value to the graph's outputs, as a scalar."""
    node = ir.node(operator, [value], {"keepdims": 0})
    output = node.outputs[0]
    output.name, output.type, output.shape = name, value.type, ir.Shape([])
    graph.append(node)
    graph.outputs.append(output)
