"""Measure methods against the noise of int8: `python -m tests.tools.int8_methods MODEL... [--format F] [--range R]`.

Each method is measured without and with corrected biases. A row has the SNR of the logits, against the fp32 graph, of
the quantized graph as it is written, which is what a processor with VNNI computes: calibrated on 32 crops of the photos
of the package and measured on 8 others; shiftvit_cifar10, the one with trained weights, on 64 calibration images and
300 test images of CIFAR-10. The table of methods in docs/quantization.md comes from here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np

from edgevit.export import passes
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.bias_correction import correct_biases, mean_errors
from edgevit.export.quantization.calibration import ValueRange
from edgevit.export.quantization.int8 import IntegerType, activation_scale, find_layers, quantize
from edgevit.export.quantization.smoothing import Smoothing, find_norms, smoothing_of
from edgevit.export.quantization.smoothing_choice import choose_smoothing
from edgevit.export.quantization.speed_rule import SpeedRule
from edgevit.formats import Int8Range, Int8Scheme, get_format
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.pipeline.precision import MAX_BIAS_ROWS, MAX_SMOOTHING_ROWS
from edgevit.types import Array
from tests.helpers.cifar10 import load_cifar10
from tests.helpers.quantization import snr_db
from tests.tools.bench.engine_builder import EngineBuilder
from tests.tools.bench.kept import Folders
from tests.tools.quantization import calibration_images

Prepared: TypeAlias = tuple[OnnxGraph, Mapping[str, ValueRange]]
Prepare: TypeAlias = Callable[[], Prepared]

CIFAR10 = "shiftvit_cifar10"
CIFAR10_CALIBRATION, CIFAR10_TEST = 64, 300  # images
SAMPLES = 20_000  # of a tensor, for each calibration input
PERCENTILES = (99.99, 99.9)  # of the values that are not clipped
ALPHAS = (0.25, 0.5, 0.75)
_SHRINKS = np.linspace(0.3, 1, 36)  # of the extremes, among which the range of the least squared error is searched


@dataclass
class Values:
    """The values of a tensor on all calibration inputs."""

    low: Array  # (channels,)
    high: Array  # (channels,)
    samples: list[Array] = field(default_factory=list)

    @property
    def sample(self) -> Array:
        return np.concatenate(self.samples)

    @property
    def extremes(self) -> tuple[float, float]:
        return float(self.low.min()), float(self.high.max())

    @property
    def range(self) -> ValueRange:
        low, high = self.extremes
        return ValueRange((low,), (high,), tuple(self.low.tolist()), tuple(self.high.tolist()))


@dataclass(frozen=True)
class Subject:
    """The fp32 graph of a model, specialized for a format, and its inputs."""

    graph: OnnxGraph
    scheme: Int8Scheme
    calibration: Array
    held_out: Array

    @property
    def layers(self) -> list[str]:
        found = find_layers(self.graph, SpeedRule.of(self.scheme))
        return [layer.name for layer in found if not layer.skip_reason]

    def feeds(self, rows: Array) -> list[dict[str, Array]]:
        return [{self.graph.inputs[0].name: row[np.newaxis]} for row in rows]

    def logits(self, graph: OnnxGraph) -> Array:
        run = graph_evaluator(graph, threads=1)
        return np.concatenate([run(feed)[graph.outputs[0].name] for feed in self.feeds(self.held_out)])

    def values(self, graph: OnnxGraph) -> dict[str, Values]:
        """Return the values of the inputs and outputs of layers, by name."""
        axes = {
            name: 1 if layer.operator == "Conv" else -1
            for layer in find_layers(graph)
            for name in (layer.output, layer.activation)
        }
        run, found = graph_evaluator(_with_outputs(graph, set(axes)), threads=1), dict[str, Values]()
        generator = np.random.default_rng(0)
        for feed in self.feeds(self.calibration):
            results = {**feed, **run(feed)}
            for name, axis in axes.items():
                channels = np.moveaxis(results[name], axis, 0).reshape(results[name].shape[axis], -1)
                low, high = channels.min(1), channels.max(1)
                known = found.setdefault(name, Values(low, high))
                known.low, known.high = np.minimum(known.low, low), np.maximum(known.high, high)
                known.samples.append(generator.choice(channels.reshape(-1), SAMPLES))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--format", default="openvino", choices=["onnx", "ort", "openvino", "trt", "trt-rtx"])
    parser.add_argument("--range", default="safe", choices=get_args(Int8Range), help="of the weights")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="how the methods to measure begin (default: all)")
    arguments = parser.parse_args()
    _print(f"{'model':18}{'method':22}{'SNR dB':>8}{'corrected':>11}")
    for name in arguments.models:
        subject = subject_of(name, arguments.format, arguments.range)
        expected = subject.logits(subject.graph)
        for method, prepare in methods(subject):
            if not method.startswith(tuple(arguments.methods or [""])):
                continue
            graph, ranges = prepare()
            before, after = (
                snr_db(expected, subject.logits(quantized(subject, graph, ranges, correct=correct)))
                for correct in (False, True)
            )
            _print(f"{name:18}{method:22}{before:8.1f}{after:11.1f}")


def subject_of(name: str, fmt: str, weight_range: Int8Range) -> Subject:
    is_trained = name == CIFAR10
    with tempfile.TemporaryDirectory() as folder:
        builder = EngineBuilder(name, Folders(Path(folder), Path(folder)))
        optimized = passes.optimize(builder.captured)
    return Subject(
        graph=check(passes.specialize(optimized, fmt, precision="int8")),
        scheme=replace(get_format(fmt).require_int8(), weight_range=weight_range),
        calibration=calibration_images()[:CIFAR10_CALIBRATION] if is_trained else builder.calibration,
        held_out=load_cifar10().inputs[:CIFAR10_TEST] if is_trained else builder.held_out,
    )


def methods(subject: Subject) -> Iterator[tuple[str, Prepare]]:
    """Yield the name of each method, and a function that returns the fp32 graph and the ranges that it quantizes."""
    graph, values, dtype = subject.graph, subject.values(subject.graph), subject.scheme.activations
    ranges = {name: each.range for name, each in values.items()}

    def clipped(clip: Callable[[Values], tuple[float, float]]) -> Prepared:
        return graph, {name: _range(*clip(each)) for name, each in values.items()}

    yield "extremes", lambda: (graph, ranges)
    for percentile in PERCENTILES:
        yield f"{percentile} % of values", partial(clipped, partial(percentiles, percentile=percentile))
    yield "least squared error", partial(clipped, partial(least_error, dtype=dtype))
    norms = find_norms(graph, subject.layers)
    for alpha in ALPHAS:
        smoothing = smoothing_of(norms, ranges, alpha=alpha)
        if smoothing is not None:
            yield f"smoothed, alpha {alpha}", partial(smoothed, graph, ranges, smoothing)
    yield "as exported", partial(exported, subject, ranges)


def smoothed(graph: OnnxGraph, ranges: Mapping[str, ValueRange], smoothing: Smoothing) -> Prepared:
    return smoothing.apply(graph), smoothing.ranges(ranges)


def exported(subject: Subject, ranges: Mapping[str, ValueRange]) -> Prepared:
    """Return the graph with the smoothing that an export chooses, or without."""
    feeds = subject.feeds(subject.calibration[:MAX_BIAS_ROWS])
    chosen = choose_smoothing(
        subject.graph, ranges, feeds, compared=MAX_SMOOTHING_ROWS, scheme=subject.scheme, load=graph_evaluator
    )
    return chosen.graph, chosen.ranges


def quantized(subject: Subject, graph: OnnxGraph, ranges: Mapping[str, ValueRange], *, correct: bool) -> OnnxGraph:
    """Return a graph with the layers of the subject in int8."""
    layers, scheme = subject.layers, subject.scheme
    if correct:
        feeds = subject.feeds(subject.calibration)
        errors = mean_errors(graph, layers, ranges, feeds, scheme=scheme, load=graph_evaluator)
        graph = correct_biases(graph, errors)
    return check(quantize(graph, layers, ranges, scheme=scheme))


def percentiles(values: Values, percentile: float) -> tuple[float, float]:
    """Return the range of the middle `percentile` % of a tensor's values."""
    tail = (100 - percentile) / 2
    low, high = np.percentile(values.sample, [tail, 100 - tail])
    return float(low), float(high)


def least_error(values: Values, dtype: IntegerType) -> tuple[float, float]:
    """Return the range, as a fraction of the extremes, whose integers have the least squared error."""
    low, high = values.extremes
    sample = values.sample

    def error(shrink: float) -> float:
        scale, zero = activation_scale(_range(shrink * low, shrink * high), dtype, min_scale=1e-30)
        limits = np.iinfo(zero.dtype)
        rounded = (np.clip(np.rint(sample / scale) + zero, limits.min, limits.max) - zero) * scale
        return float(np.square(rounded - sample).mean())

    best = min(map(float, _SHRINKS), key=error)
    return best * low, best * high


def _range(low: float, high: float) -> ValueRange:
    return ValueRange((float(low),), (float(high),))


def _with_outputs(graph: OnnxGraph, names: set[str]) -> OnnxGraph:
    model = graph.model.clone()
    present = {value.name for value in model.graph.outputs}
    values = [value for node in model.graph for value in node.outputs if value.name in names - present]
    model.graph.outputs.extend(values)
    return OnnxGraph(model)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
