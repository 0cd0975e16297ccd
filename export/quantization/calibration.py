"""What tensors reach on calibration inputs. The graph works it out itself, so that no tensor leaves it."""

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

# Makes a graph ready to run; its answers come by output name.
Load: TypeAlias = Callable[[OnnxGraph], Callable[[Feeds], Mapping[str, Array]]]
# Called with the inputs that have been looked at and the inputs there are.
OnFeed: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reach:
    """The least and the largest value of a tensor in each of the calibration inputs."""

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


def cached_reach(
    graph: OnnxGraph,
    feeds: Sequence[Feeds],
    *,
    load: Load,
    names: Collection[str],
    cache: Path | None,
    on_feed: OnFeed | None = None,
) -> dict[str, Reach]:
    """`measure_reach`, or what it gave the last time for the very same graph and inputs, from the folder `cache`.

    A cache that cannot be read or written costs time and nothing else.
    """
    if cache is None:
        return measure_reach(graph, feeds, load=load, names=names, on_feed=on_feed)
    file = cache / f"{_key(graph, feeds, names)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        kept = json.loads(file.read_text("utf-8"))
        found = {name: Reach(tuple(map(float, lows)), tuple(map(float, highs))) for name, (lows, highs) in kept.items()}
        whole = all(len(reach.lows) == len(reach.highs) == len(feeds) for reach in found.values())
        if whole and found.keys() == {value.name for value in _tensors(graph.model.graph) if value.name in names}:
            return found
    found = measure_reach(graph, feeds, load=load, names=names, on_feed=on_feed)
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({name: [reach.lows, reach.highs] for name, reach in found.items()}))
    return found


def _key(graph: OnnxGraph, feeds: Sequence[Feeds], names: Collection[str]) -> str:
    """A hash of all that the reach depends on."""
    key = hashlib.sha256(b"reach 1\n")
    key.update(graph.to_bytes())
    key.update("\n".join(sorted(names)).encode())
    for feed in feeds:
        for name, array in sorted(feed.items()):
            key.update(f"{name} {array.dtype} {array.shape}".encode())
            key.update(np.ascontiguousarray(array).tobytes())
    return key.hexdigest()


def measure_reach(
    graph: OnnxGraph,
    feeds: Sequence[Feeds],
    *,
    load: Load,
    names: Collection[str] | None = None,
    on_feed: OnFeed | None = None,
) -> dict[str, Reach]:
    """The reach of each fp32 tensor that is no weight, or of those in `names`, by the tensor's name.

    Raises UsageError without feeds, ExportError where the graph's answer to one of them is not finite.
    """
    if not feeds:
        raise UsageError("ranges are measured on calibration inputs, and there are none; give images with --calib")
    model = graph.model.clone()
    asked = [str(value.name) for value in model.graph.outputs]
    tensors = [value for value in _tensors(model.graph) if names is None or value.name in names]
    watched = {str(value.name): (f"low.{index}", f"high.{index}") for index, value in enumerate(tensors)}
    for value in tensors:
        low, high = watched[str(value.name)]
        _watch(model.graph, value, "ReduceMin", low)
        _watch(model.graph, value, "ReduceMax", high)
    common_passes.NameFixPass()(model)
    run = load(OnnxGraph(model))
    found: list[Mapping[str, Array]] = []
    for index, feed in enumerate(feeds):
        if on_feed is not None:
            on_feed(index, len(feeds))
        answers = run(feed)
        if not all(np.isfinite(answers[name]).all() for name in asked):
            raise ExportError("in fp32 already the answer to a calibration input is not finite; look into that first")
        found.append({name: answers[name] for pair in watched.values() for name in pair})
    return {
        name: Reach(tuple(float(each[low]) for each in found), tuple(float(each[high]) for each in found))
        for name, (low, high) in watched.items()
    }


def _tensors(graph: ir.Graph) -> list[ir.Value]:
    """The fp32 tensors that are not weights."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return [value for value in values if is_float(value) and value.name]


def _watch(graph: ir.Graph, value: ir.Value, operator: str, name: str) -> None:
    """Makes the value's least or largest element an output of the graph, a single number."""
    node = ir.node(operator, [value], {"keepdims": 0})
    output = node.outputs[0]
    output.name, output.type, output.shape = name, value.type, ir.Shape([])
    graph.append(node)
    graph.outputs.append(output)
