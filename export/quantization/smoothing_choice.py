"""Choose the smoothing with which the int8 graph is closest to the fp32 graph on calibration inputs, or none.

Smoothing gains 1 dB in one model and loses 1 dB in another, and the error of each layer does not tell which: all layers
of swin_xt lose less by themselves, and the logits lose more. So each candidate is quantized as a whole, with the biases
that it would get, and compared by its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.bias_correction import (
    correct_biases,
    mean_errors_of_all,
    read_arrays,
    write_arrays,
)
from edgevit.export.quantization.calibration import LoadGraph, OnFeed, ValueRange, measurement_key
from edgevit.export.quantization.fp16 import KeptNode
from edgevit.export.quantization.int8 import find_layers, quantize
from edgevit.export.quantization.sensitivity import is_not_finite, worst_noise_to_signal
from edgevit.export.quantization.smoothing import Norm, Smoothing, find_norms, smoothing_of
from edgevit.export.quantization.speed_rule import SpeedRule
from edgevit.formats import Int8Scheme
from edgevit.types import Array, Feeds

ALPHAS = (0.5,)  # 0.25 and 0.75 were best in one model of five at most (docs/quantization.md); each takes as long
_NOISE = "noise"  # name of an array in the cache; those of errors have a dot


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedGraph:
    """An fp32 graph whose channels are scaled by the best smoothing, or the graph as it was if none is better."""

    graph: OnnxGraph
    ranges: Mapping[str, ValueRange]
    smoothing: Smoothing | None = None
    errors: Mapping[str, Array] | None = None  # mean errors of its layers, by name; None: not measured

    def count_layers(self, kept: Iterable[KeptNode]) -> int:
        """Return how many layers read scaled channels, without those that are kept in float."""
        readers = set() if self.smoothing is None else set(self.smoothing.readers)
        return len(readers - {node.name for node in kept})


def norms_of(graph: OnnxGraph, scheme: Int8Scheme) -> tuple[Norm, ...]:
    """Return the norms that a smoothing may scale."""
    return find_norms(graph, _quantized(graph, scheme))


def choose_smoothing(
    graph: OnnxGraph,
    ranges: Mapping[str, ValueRange],
    feeds: Sequence[Feeds],
    *,
    compared: int,
    scheme: Int8Scheme,
    load: LoadGraph,
    cache: Path | None = None,
    on_feed: OnFeed | None = None,
) -> SmoothedGraph:
    """Return the graph with the smoothing of least noise, with the mean errors of its layers on `feeds`.

    `ranges` have the channels of `norms_of`. The noise is that of the outputs for the first `compared` feeds, with all
    layers in int8. `cache` is a folder for what was measured before, of the same graph, ranges, scheme and feeds.
    """
    norms = norms_of(graph, scheme)
    smoothings = [found for alpha in ALPHAS if (found := smoothing_of(norms, ranges, alpha=alpha)) is not None]
    if not smoothings:
        return SmoothedGraph(graph=graph, ranges=ranges)
    key = f"smoothing {scheme} {sorted(ranges.items())} {ALPHAS} {compared}"
    file = None if cache is None else cache / f"{measurement_key(graph, feeds, key)}.npz"
    measured = read_arrays(file)
    shape = 1 + len(smoothings), len(feeds[:compared])
    if measured is None or _NOISE not in measured or measured[_NOISE].shape != shape:
        candidates = _Candidates(graph, ranges, scheme, smoothings)
        measured = candidates.measure(feeds, compared, load, on_feed)
        write_arrays(file, measured)
    best = least_noise(measured[_NOISE])
    errors = {name.partition(".")[2]: error for name, error in measured.items() if name.startswith(f"{best}.")}
    if best == 0:
        return SmoothedGraph(graph=graph, ranges=ranges, errors=errors)
    smoothing = smoothings[best - 1]
    return SmoothedGraph(
        graph=smoothing.apply(graph), ranges=smoothing.ranges(ranges), smoothing=smoothing, errors=errors
    )


def least_noise(noise: Array) -> int:
    """Return the row of `noise`, (candidates, feeds), with the least mean, or 0 if that could be chance.

    It has to be below that of the first row by more than the standard error of the difference over the feeds: a
    small model's few logits for eight images decide nothing otherwise.
    """
    best = int(np.argmin(noise.mean(1)))
    with np.errstate(invalid="ignore"):  # noise may be infinite
        gain = noise[0] - noise[best]
        return best if gain.mean() > gain.std() / np.sqrt(len(gain)) else 0


def _quantized(graph: OnnxGraph, scheme: Int8Scheme) -> frozenset[str]:
    return frozenset(layer.name for layer in find_layers(graph, SpeedRule.of(scheme)) if not layer.skip_reason)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """A graph, and its smoothings."""

    graph: OnnxGraph
    ranges: Mapping[str, ValueRange]
    scheme: Int8Scheme
    smoothings: Sequence[Smoothing]

    def measure(
        self, feeds: Sequence[Feeds], compared: int, load: LoadGraph, on_feed: OnFeed | None
    ) -> dict[str, Array]:
        """Return the noise without and with each smoothing, (1 + smoothings, feeds), and the mean errors of the layers.

        The latter are called `<index>.<layer>`.
        """
        found = mean_errors_of_all(
            self.graph,
            self._finite,
            self.ranges,
            self.smoothings,
            feeds,
            scheme=self.scheme,
            load=load,
            on_feed=on_feed,
        )
        run = load(self.graph)
        expected = [run(feed) for feed in feeds[:compared]]
        noise = []
        for smoothing, errors in zip((None, *self.smoothings), found, strict=True):
            run = load(self._quantize(smoothing, errors))
            actual = [run(feed) for feed in feeds[:compared]]
            noise.append([worst_noise_to_signal([want], [got]) for want, got in zip(expected, actual, strict=True)])
        arrays = {f"{index}.{name}": error for index, errors in enumerate(found) for name, error in errors.items()}
        return {**arrays, _NOISE: np.asarray(noise)}

    def _quantize(self, smoothing: Smoothing | None, errors: Mapping[str, Array]) -> OnnxGraph:
        """Return the graph with the layers in int8 that the rule chooses."""
        graph = self.graph if smoothing is None else smoothing.apply(self.graph)
        ranges = self.ranges if smoothing is None else smoothing.ranges(self.ranges)
        layers = _quantized(self.graph, self.scheme).intersection(self._finite)
        corrected = correct_biases(graph, {name: error for name, error in errors.items() if name in layers})
        return quantize(corrected, layers, ranges, scheme=self.scheme)

    @property
    def _finite(self) -> list[str]:
        """The layers whose input and output have a range."""
        return [layer.name for layer in find_layers(self.graph) if not is_not_finite(layer, self.ranges)]
