"""int8 as far as the answers allow: the layers that cost them most go back to float, until a judge is content."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from edgevit.errors import PrecisionError
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs
from edgevit.export.quantization.calibration import Load, Reach
from edgevit.export.quantization.fp16 import KeptNode
from edgevit.export.quantization.int8 import Layer, layers_of, needs_vnni, quantize
from edgevit.formats import Int8Scheme
from edgevit.types import Feeds

# Why the answers of a graph will not do; empty where they will.
Judge: TypeAlias = Callable[[OnnxGraph], str]
# Called with the layers that have been looked at and the layers there are.
OnLayer: TypeAlias = Callable[[int, int], None]

LEAST_SHARE = 0.5  # of the graph's multiply-adds: with less than that in int8 the name would be a lie


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """What of a graph is int8, what is not, and why."""

    activations: str  # uint8 or int8
    rest: str  # the precision of what is not int8
    layers: int  # convolutions and products with constant weights
    kept: tuple[KeptNode, ...]  # the layers that are not int8
    fraction: float  # of the graph's MACs that the int8 layers do
    photos: int  # calibration inputs
    weight_range: str  # "safe" or "full", see Int8Scheme
    needs_vnni: bool  # whether an x86 processor without VNNI computes the graph wrongly

    @property
    def summary(self) -> str:
        quantised = self.layers - len(self.kept)
        share = "more than 99.9%" if 0.9995 < self.fraction < 1 else f"{self.fraction:.1%}"
        return (
            f"{quantised} of {self.layers} layers in int8, {share} of all multiply-adds, "
            f"by {self.photos} calibration inputs"
        )

    @property
    def reverted(self) -> tuple[KeptNode, ...]:
        """The layers that would gain by int8 and cost accuracy."""
        return tuple(node for node in self.kept if node.reason.startswith(_COSTLY))

    def notes(self) -> list[str]:
        """Return what the export report says about the conversion."""
        return [self.summary, *(f"{node.name} stays in float: {node.reason}" for node in self.reverted)]

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"summary": self.summary, "share": fields.pop("fraction"), **fields}


_COSTLY = "costs accuracy"
_NOT_FINITE = "what it reads or makes is not finite on calibration inputs, in fp32 already"


def quantize_within(
    graph: OnnxGraph,
    reach: Mapping[str, Reach],
    *,
    scheme: Int8Scheme,
    judge: Judge,
    feeds: Sequence[Feeds],
    load: Load,
    on_layer: OnLayer | None = None,
) -> tuple[OnnxGraph, QuantizationPlan]:
    """The graph with as many layers in int8 as `judge` allows, and the plan of it.

    All of them first. Where that will not do, each layer is measured by itself, by the noise that it alone brings into
    the answers to `feeds`, and the loudest go back to float: the fewest that content the judge.

    Raises PrecisionError where less than half of the graph's multiply-adds could be, or would be left, in int8.
    """
    layers = tuple(_measurable(layer, reach) for layer in layers_of(graph))
    able = [layer for layer in layers if not layer.stays_float]
    if not able:
        raise PrecisionError("the graph has no layer that would gain by int8; ask for --precision fp16 or fp32")
    least = LEAST_SHARE * graph_macs(graph)
    if (most_int8 := sum(layer.multiply_adds for layer in able)) < least:
        raise PrecisionError(
            f"{most_int8 / graph_macs(graph):.0%} of the graph's multiply-adds are in layers that can be int8, and "
            f"{LEAST_SHARE:.0%} have to be; ask for --precision fp16 or fp32"
        )
    everything = _quantized(graph, able, reach, scheme)
    complaint = judge(everything)
    if not complaint:
        return everything, _plan(everything, graph, layers, {}, reach, scheme)
    noise = _noise_by_layer(graph, able, reach, scheme, feeds, load, on_layer)
    order = sorted(able, key=lambda layer: -noise[layer.name])
    most = _most_reverted(order, least)
    last = judge(_quantized(graph, order[most:], reach, scheme))
    if last:
        names = ", ".join(layer.name for layer in order[:5])
        raise PrecisionError(
            f"int8 does not keep the answers: {complaint}; with half of the multiply-adds back in float, {last} "
            f"(most sensitive: {names}). Calibrate with photos like those it will see, or ask for --precision fp16"
        )
    count = _fewest(order, most, lambda count: not judge(_quantized(graph, order[count:], reach, scheme)))
    reverted = {
        layer.name: f"{_COSTLY}: it alone in int8 leaves an SNR of {_decibel(noise[layer.name]):.0f} dB"
        for layer in order[:count]
    }
    quantized = _quantized(graph, order[count:], reach, scheme)
    return quantized, _plan(quantized, graph, layers, reverted, reach, scheme)


def _measurable(layer: Layer, reach: Mapping[str, Reach]) -> Layer:
    """The layer; one that stays in float where what it reads or makes is not finite, of which there is no scale."""
    around = [reach[name] for name in (layer.activation, layer.output) if name in reach]
    if all(map(math.isfinite, (value for found in around for value in (*found.lows, *found.highs)))):
        return layer
    return replace(layer, stays_float=layer.stays_float or _NOT_FINITE)


def _quantized(
    graph: OnnxGraph, layers: Collection[Layer], reach: Mapping[str, Reach], scheme: Int8Scheme
) -> OnnxGraph:
    return quantize(graph, [layer.name for layer in layers], reach, scheme=scheme)


def _noise_by_layer(
    graph: OnnxGraph,
    layers: Sequence[Layer],
    reach: Mapping[str, Reach],
    scheme: Int8Scheme,
    feeds: Sequence[Feeds],
    load: Load,
    on_layer: OnLayer | None,
) -> dict[str, float]:
    """The noise over the signal in the answers with each layer alone in int8."""
    answer = load(graph)
    wanted = [answer(feed) for feed in feeds]
    noise = {}
    for index, layer in enumerate(layers):
        if on_layer is not None:
            on_layer(index, len(layers))
        answer = load(_quantized(graph, [layer], reach, scheme))
        noise[layer.name] = _noise(wanted, [answer(feed) for feed in feeds])
    return noise


def _noise(wanted: Sequence[Feeds], found: Sequence[Feeds]) -> float:
    """The power of the difference over that of the answers; infinite where an answer is not finite."""
    difference = signal = 0.0
    for want, got in zip(wanted, found, strict=True):
        for name, array in want.items():
            difference += float(np.square(got[name].astype(np.float64) - array).sum())
            signal += float(np.square(array.astype(np.float64)).sum())
    return difference / signal if signal > 0 and math.isfinite(difference) else math.inf


def _decibel(noise: float) -> float:
    return -10 * math.log10(noise) if 0 < noise < math.inf else math.inf if noise == 0 else -math.inf


def _most_reverted(order: Sequence[Layer], least: float) -> int:
    """How many of the first layers may go back to float so that `least` multiply-adds stay int8."""
    left = sum(layer.multiply_adds for layer in order)
    for count, layer in enumerate(order):
        left -= layer.multiply_adds
        if left < least:
            return count
    return len(order)


def _fewest(order: Sequence[Layer], most: int, content: Callable[[int], bool]) -> int:
    """The fewest layers to revert, between 1 and `most`, which contents the judge; by halving the interval."""
    low, high = 0, min(most, len(order))  # 0 is known not to do, `most` to do
    while high - low > 1:
        middle = (low + high) // 2
        if content(middle):
            high = middle
        else:
            low = middle
    return high


def _plan(
    quantized: OnnxGraph,
    graph: OnnxGraph,
    layers: Sequence[Layer],
    reverted: Mapping[str, str],
    reach: Mapping[str, Reach],
    scheme: Int8Scheme,
) -> QuantizationPlan:
    kept = tuple(
        KeptNode(name=layer.name, operator=layer.operator, reason=reason)
        for layer in layers
        if (reason := layer.stays_float or reverted.get(layer.name, ""))
    )
    names = {node.name for node in kept}
    whole = sum(layer.multiply_adds for layer in layers if layer.name not in names)
    return QuantizationPlan(
        activations=scheme.activations,
        rest=scheme.float_dtype,
        layers=len(layers),
        kept=kept,
        fraction=whole / graph_macs(graph),
        photos=max(len(found.lows) for found in reach.values()),
        weight_range=scheme.weight_range,
        needs_vnni=needs_vnni(quantized),
    )
