"""Bias correction: take the mean error that int8 adds to each output channel of a layer off its bias.

A layer y = W x + b becomes W' x' + b, with the weights W' and the input x' rounded to 8 bits. Its error W' x' - W x has
a mean, since x has one: with E over calibration inputs and positions,

    e = E[W' x'] - E[W x]        b' = b - e

so that E[W' x' + b'] = E[W x + b] in each channel (Nagel et al., Data-Free Quantization through Weight Equalization and
Bias Correction, ICCV 2019, section 4.2, which derives E[x] from batch norms; appendix D measures it, as is done here).
The bias exists anyway, so that the engine stays as fast as it was.

x is the input of the layer in the fp32 graph: the error of a layer does not depend on the layers before it, so that it
holds for any choice of the layers in int8. Layers without a bias stay as they are.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import initializer, required_input
from edgevit.export.quantization.calibration import LoadGraph, OnFeed, ValueRange, measurement_key, reduction
from edgevit.export.quantization.channel_scaling import along
from edgevit.export.quantization.int8 import (
    Bias,
    channel_axis,
    fake_quantized_weight,
    find_bias,
    float_weight,
    tensor_scale,
)
from edgevit.export.quantization.smoothing import Smoothing
from edgevit.files import write_atomically
from edgevit.formats import Int8Scheme
from edgevit.types import Array, Feeds


@dataclass(slots=True, kw_only=True)
class BiasCorrection:
    """Corrects the biases of the layers of one graph. The errors are measured once, on `feeds`.

    `load` prepares a graph to run. `cache` is a folder for errors that were measured before, of the same graph, layers,
    ranges, scheme and feeds. `errors` has all layers by name; None: they are not measured yet.
    """

    feeds: Sequence[Feeds]
    load: LoadGraph
    cache: Path | None = None
    on_feed: OnFeed | None = None
    errors: Mapping[str, Array] | None = None

    def measure(
        self, graph: OnnxGraph, layers: Collection[str], ranges: Mapping[str, ValueRange], *, scheme: Int8Scheme
    ) -> None:
        """Measure the errors of the named layers, unless they are known."""
        if self.errors is not None:
            return
        key = f"{scheme} {sorted(ranges.items())} {sorted(layers)}"
        file = None if self.cache is None else self.cache / f"{measurement_key(graph, self.feeds, key)}.npz"
        self.errors = read_arrays(file)
        if self.errors is None:
            self.errors = mean_errors(
                graph, layers, ranges, self.feeds, scheme=scheme, load=self.load, on_feed=self.on_feed
            )
            write_arrays(file, self.errors)

    def apply(self, graph: OnnxGraph, layers: Collection[str]) -> OnnxGraph:
        """Return the graph with the biases of the named layers corrected, for `quantize`."""
        errors = self.errors or {}
        return correct_biases(graph, {name: errors[name] for name in layers if name in errors})


def read_arrays(file: Path | None) -> dict[str, Array] | None:
    """Read measured arrays, by name; None if there are none or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if file is not None:
            with np.load(file, allow_pickle=False) as found:
                return dict(found)
    return None


def write_arrays(file: Path | None, arrays: Mapping[str, Array]) -> None:
    """Write measured arrays; a cache that is not writable is ignored."""
    if file is None:
        return
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())


def mean_errors(
    graph: OnnxGraph,
    layers: Collection[str],
    ranges: Mapping[str, ValueRange],
    feeds: Sequence[Feeds],
    *,
    scheme: Int8Scheme,
    load: LoadGraph,
    on_feed: OnFeed | None = None,
) -> dict[str, Array]:
    """Return the mean error of each output channel, (channels,), of the named layers that have a bias, by layer name.

    Each layer is quantized alone: its input is that of the fp32 graph.
    """
    (errors,) = mean_errors_of_all(graph, layers, ranges, (), feeds, scheme=scheme, load=load, on_feed=on_feed)
    return errors


def mean_errors_of_all(
    graph: OnnxGraph,
    layers: Collection[str],
    ranges: Mapping[str, ValueRange],
    smoothings: Sequence[Smoothing],
    feeds: Sequence[Feeds],
    *,
    scheme: Int8Scheme,
    load: LoadGraph,
    on_feed: OnFeed | None = None,
) -> list[dict[str, Array]]:
    """Return `mean_errors` of the graph as it is, and of the graph with each of `smoothings`, from one run.

    Layers whose input a smoothing does not scale have the errors that they have without it.
    """
    model = graph.model.clone()
    # All before the first fake-quantized layer, which reads what only the addition of a bias did.
    biased = [node for node in model.graph if node.name in layers and _bias(node) is not None]
    fakes = [
        _FakeQuantizedLayers(model.graph, ranges, scheme, smoothing, opset=graph.opset)
        for smoothing in (None, *smoothings)
    ]
    weights = [(index, node, each.weight(node)) for index, each in enumerate(fakes) for node in each.of(biased)]
    outputs = {
        fakes[index].add_mean_error(node, weight, f"{node.name}.{index}"): (index, str(node.name))
        for index, node, weight in weights
    }
    errors: list[dict[str, Array]] = [{} for _ in (None, *smoothings)]
    if not outputs:
        return errors
    common_passes.NameFixPass()(model)
    run = load(OnnxGraph(model))
    sums: dict[str, Array] = {}
    for index, feed in enumerate(feeds):
        if on_feed is not None:
            on_feed(index, len(feeds))
        results = run(feed)
        for output in outputs:
            sums[output] = results[output].astype(np.float64) + sums.get(output, 0)
    for output, (index, name) in outputs.items():
        errors[index][name] = sums[output] / len(feeds)
    return [{**errors[0], **each} for each in errors]


def correct_biases(graph: OnnxGraph, errors: Mapping[str, Array]) -> OnnxGraph:
    """Return the graph with the errors of layers, each (channels,) by layer name, taken off their biases."""

    def rewrite(model: ir.Model) -> None:
        for node in model.graph:
            bias = _bias(node) if node.name in errors else None
            if bias is not None:
                corrected = (bias.array - errors[str(node.name)]).astype(bias.array.dtype)
                value = initializer(model.graph, f"{bias.value.name}_corrected", corrected)
                bias.reader.replace_input_with(bias.index, value)

    return graph.apply("correct_biases", rewrite) if errors else graph


def _bias(node: ir.Node) -> Bias | None:
    """Return the bias of a layer, unless it is multiplied by a factor; None for an operator without weights."""
    if float_weight(node) is None or node.attributes.get_float("beta", 1.0) != 1.0:
        return None
    return find_bias(node)


class _FakeQuantizedLayers:
    """Adds fake-quantized layers, in fp32 with rounded inputs and weights, to a graph beside its own.

    With a smoothing, its layers are those whose input this scales.
    """

    def __init__(
        self,
        graph: ir.Graph,
        ranges: Mapping[str, ValueRange],
        scheme: Int8Scheme,
        smoothing: Smoothing | None,
        *,
        opset: int,
    ) -> None:
        self._graph, self._scheme, self._opset = graph, scheme, opset
        self._ranges = ranges if smoothing is None else smoothing.ranges(ranges)
        self._scales = None if smoothing is None else smoothing.scales_of_readers  # by layer
        self._rounded: dict[ir.Value, ir.Value] = {}  # inputs of layers

    def of(self, layers: Iterable[ir.Node]) -> list[ir.Node]:
        """Return those of the layers that can be fake-quantized here."""
        return [node for node in layers if self._scales is None or node.name in self._scales]

    def weight(self, node: ir.Node) -> Array:
        """Return the fake-quantized weight of a layer."""
        return fake_quantized_weight(node, self._scheme, self._scale(node)[0], smoothing=self._smoothing(node))

    def add_mean_error(self, node: ir.Node, weight: Array, prefix: str) -> str:
        """Add an output with the mean difference between a layer in int8 and in fp32, (channels,); return its name."""
        exact, rounded = node.outputs[0], initializer(self._graph, f"{prefix}.rounded", weight)
        inputs = [self._round_input(node), rounded, *node.inputs[2:]]
        fake = ir.Node(node.domain, node.op_type, inputs, attributes=list(node.attributes.values()))
        difference = ir.node("Sub", [fake.outputs[0], exact])
        rank = len(exact.shape or ())
        axis = channel_axis(node) % rank
        others = [each for each in range(rank) if each != axis]
        mean = reduction(self._graph, "ReduceMean", difference.outputs[0], others, name=prefix, opset=self._opset)
        self._graph.insert_after(node, [fake, difference, mean])
        output = mean.outputs[0]
        output.name, output.type, output.shape = f"{prefix}.error", exact.type, ir.Shape([(exact.shape or ())[axis]])
        self._graph.outputs.append(output)
        return str(output.name)

    def _smoothing(self, node: ir.Node) -> Array | None:
        """Return the scales of a layer's input channels, (channels,); None if they are as they were."""
        return None if self._scales is None else self._scales[str(node.name)]

    def _scale(self, node: ir.Node) -> tuple[Array, Array]:
        """Return the scale and zero point of a layer's input."""
        assert node.inputs[0] is not None  # of a layer
        return tensor_scale(self._ranges[str(node.inputs[0].name)], self._scheme)

    def _round_input(self, node: ir.Node) -> ir.Value:
        """Return a layer's input rounded to the integers of its range."""
        value = required_input(node)
        if value not in self._rounded:
            constants = [initializer(self._graph, f"{value.name}.{each.dtype}", each) for each in self._scale(node)]
            added = self._divide_channels(node, value)
            quantize = ir.node("QuantizeLinear", [added[-1].outputs[0] if added else value, *constants])
            dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *constants])
            added += [quantize, dequantize]
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], added)
            else:
                self._graph.insert_after(producer, added)
            self._rounded[value] = dequantize.outputs[0]
        return self._rounded[value]

    def _divide_channels(self, node: ir.Node, value: ir.Value) -> list[ir.Node]:
        """Return the node that divides the channels of a layer's input by its scales; none without scales."""
        smoothing = self._smoothing(node)
        if smoothing is None:
            return []
        factors = along(channel_axis(node), 1 / smoothing, len(value.shape or ()))
        return [ir.node("Mul", [value, initializer(self._graph, f"{value.name}.factors", factors)])]
