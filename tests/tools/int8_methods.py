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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir

from edgevit.export import passes
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, initializer, remove_unused
from edgevit.export.quantization.bias_correction import correct_biases, mean_errors
from edgevit.export.quantization.calibration import ValueRange
from edgevit.export.quantization.int8 import IntegerType, activation_scale, find_layers, quantize
from edgevit.export.quantization.speed_rule import SpeedRule
from edgevit.formats import Int8Range, Int8Scheme, get_format
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.types import Array
from tests.helpers.cifar10 import load_cifar10
from tests.helpers.quantization import snr_db
from tests.tools.bench.engine_builder import EngineBuilder
from tests.tools.bench.kept import Folders
from tests.tools.quantization import calibration_images

CIFAR10 = "shiftvit_cifar10"
CIFAR10_CALIBRATION, CIFAR10_TEST = 64, 300  # images
SAMPLES = 20_000  # of a tensor, for each calibration input
PERCENTILES = (99.99, 99.9)  # of the values that are not clipped
ALPHAS = (0.25, 0.5, 0.75)
_SHRINKS = np.linspace(0.3, 1, 36)  # of the extremes, among which the range of the least squared error is searched
_LEAST = 1e-5  # of the largest channel: magnitudes below it count as much


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
    arguments = parser.parse_args()
    _print(f"{'model':18}{'method':22}{'SNR dB':>8}{'corrected':>11}")
    for name in arguments.models:
        subject = subject_of(name, arguments.format, arguments.range)
        expected = subject.logits(subject.graph)
        for method, graph, ranges in methods(subject):
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


def methods(subject: Subject) -> list[tuple[str, OnnxGraph, Mapping[str, ValueRange]]]:
    """Return the name of each method, with the fp32 graph and the ranges that are quantized by it."""
    graph, values = subject.graph, subject.values(subject.graph)
    ranges = {name: _range(*each.extremes) for name, each in values.items()}
    dtype = subject.scheme.activations
    found: list[tuple[str, OnnxGraph, Mapping[str, ValueRange]]] = [("extremes, as used", graph, ranges)]
    for percentile in PERCENTILES:
        clipped = {name: _range(*percentiles(each, percentile)) for name, each in values.items()}
        found.append((f"{percentile} % of values", graph, clipped))
    found.append(("least squared error", graph, {k: _range(*least_error(v, dtype)) for k, v in values.items()}))
    for alpha in ALPHAS:
        factors = smoothing_factors(graph, subject.layers, values, alpha)
        if factors:
            scaled = {name: _range((values[name].low / s).min(), (values[name].high / s).max()) for name, s in factors}
            found.append((f"smoothed, alpha {alpha}", smoothed(graph, dict(factors)), {**ranges, **scaled}))
    return found


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


def smoothing_factors(
    graph: OnnxGraph, layers: Sequence[str], values: Mapping[str, Values], alpha: float
) -> list[tuple[str, Array]]:
    """Return the norms' outputs that only layers read, by name, and the factors that their channels are divided by.

    s = a^alpha / w^(1 - alpha), with the largest magnitudes a of the activations and w of the weights that read them
    (SmoothQuant, Xiao et al., ICML 2023, equation 4).
    """
    found = []
    for node in graph.model.graph:
        readers = _readers(node)
        if not readers or not any(reader.name in layers for reader in readers):
            continue
        name = str(node.outputs[0].name)
        a = np.maximum(np.abs(values[name].low), np.abs(values[name].high)).astype(np.float64)
        w = np.max([np.abs(_input_channels(reader)).max(1) for reader in readers], axis=0).astype(np.float64)
        a, w = (np.maximum(each, _LEAST * each.max()) for each in (a, w))
        s = a**alpha / w ** (1 - alpha)
        found.append((name, s / np.exp(np.log(s).mean())))
    return found


def smoothed(graph: OnnxGraph, factors: Mapping[str, Array]) -> OnnxGraph:
    """Divide the scales and biases of norms by factors, by output, and multiply the weights of the readers by them."""

    def rewrite(model: ir.Model) -> None:
        for node in model.graph:
            factor = factors.get(str(node.outputs[0].name))
            if factor is None:
                continue
            for index in range(1, len(node.inputs)):
                _scale(model.graph, node, index, 1 / factor, 0)
            for reader in _readers(node):
                _scale(model.graph, reader, 1, factor, _input_axis(reader))
        remove_unused(model)  # ONNX Runtime refuses weights that no node reads

    return graph.apply("smooth", rewrite)


def _readers(node: ir.Node) -> list[ir.Node]:
    """Return the layers that read a norm; none if anything else does, or the norm has other than constant weights."""
    if node.op_type not in ("LayerNormalization", "GroupNormalization") or node.outputs[0].is_graph_output():
        return []
    users = [use.node for use in node.outputs[0].uses()]
    is_layer = all(
        user.op_type in ("MatMul", "Gemm", "Conv")
        and user.inputs[0] is node.outputs[0]
        and constant(user.inputs[1]) is not None
        and user.attributes.get_int("group", 1) == 1
        for user in users
    )
    return users if is_layer and all(constant(value) is not None for value in node.inputs[1:]) else []


def _input_axis(layer: ir.Node) -> int:
    return 1 if layer.op_type == "Conv" or layer.attributes.get_int("transB", 0) == 1 else 0


def _input_channels(layer: ir.Node) -> Array:
    """Return the weight of a layer as (input channels, others)."""
    weight = constant(layer.inputs[1])
    assert weight is not None
    moved = np.moveaxis(weight, _input_axis(layer), 0)
    return moved.reshape(len(moved), -1)


def _scale(graph: ir.Graph, node: ir.Node, index: int, factors: Array, axis: int) -> None:
    array = constant(node.inputs[index])
    assert array is not None
    scaled = array * factors.reshape([-1 if each == axis else 1 for each in range(array.ndim)])
    node.replace_input_with(index, initializer(graph, f"{node.name}.{index}", scaled.astype(array.dtype)))


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
