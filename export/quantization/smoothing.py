"""Smoothing: scale the channels behind a norm so that int8 loses less of them.

An activation has one int8 scale, a weight one for each output channel, so that neither suits input channels of unequal
size. Behind a norm the channels can be scaled freely, since its own scale g and bias b take the division:

    (S W) ((g n + b) / s) = W (g n + b)        S = diag(s), s > 0

(SmoothQuant, Xiao et al., ICML 2023, section 4). s balances the largest magnitudes of the activations and of the
weights: `power_of_two_scales`. fp32 results stay equal bit by bit, and so do the engine's operators.

All readers of a norm share s. They have to be layers with weights of their own, perhaps behind operators that move
rows of channels, such as the windows of Swin; any other reader would see the scaled values, and leaves the norm as it
is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, only_consumer, remove_unused
from edgevit.export.macs import static_shape
from edgevit.export.quantization.calibration import ValueRange
from edgevit.export.quantization.channel_scaling import channel_magnitudes, multiply_channels, power_of_two_scales
from edgevit.export.quantization.int8 import channel_axis, float_weight, input_axis
from edgevit.types import Array

_CHANNEL_AXES = {"LayerNormalization": -1, "GroupNormalization": 1, "InstanceNormalization": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A norm whose channels can be scaled."""

    name: str
    readers: tuple[str, ...]  # names of layers, at least one of which is to be in int8
    tensors: tuple[str, ...]  # names of the inputs of these layers: its output, or moved rows of it
    axis: int  # of the channels in its output and these tensors
    weights: Array  # the largest magnitude that the int8 layers multiply each channel by, (channels,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """Scales of the channels behind norms."""

    norms: tuple[Norm, ...]  # those whose channels are scaled
    scales: Mapping[str, Array]  # by the name of the norm, (channels,)

    @property
    def readers(self) -> tuple[str, ...]:
        """The layers whose input is scaled."""
        return tuple(name for norm in self.norms for name in norm.readers)

    @property
    def scales_of_readers(self) -> dict[str, Array]:
        """The scales of each such layer's input channels."""
        return {name: self.scales[norm.name] for norm in self.norms for name in norm.readers}

    def apply(self, graph: OnnxGraph) -> OnnxGraph:
        """Return the graph with scaled channels, which computes the same."""

        def rewrite(model: ir.Model) -> None:
            nodes = {str(node.name): node for node in model.graph}
            for norm in self.norms:
                _divide_output(model.graph, nodes[norm.name], self.scales[norm.name])
                for reader in norm.readers:
                    node = nodes[reader]
                    multiply_channels(model.graph, node, 1, self.scales[norm.name], input_axis(node))
            remove_unused(model)  # the weights before

        return graph.apply("smooth", rewrite)

    def ranges(self, ranges: Mapping[str, ValueRange]) -> dict[str, ValueRange]:
        """Return the ranges of the graph with scaled channels from those of the graph without."""
        scaled = {name: self.scales[norm.name] for norm in self.norms for name in norm.tensors}
        return {name: each.divided(scaled[name]) if name in scaled else each for name, each in ranges.items()}


def find_norms(graph: OnnxGraph, layers: Collection[str]) -> tuple[Norm, ...]:
    """Return the norms whose channels can be scaled and that one of the named layers reads, in the order of the graph.

    `layers` are those that are to be in int8.
    """
    found = []
    for node in graph.model.graph:
        readers = _readers(node)
        quantized = [reader for reader in readers if reader.name in layers]
        if quantized:
            found.append(
                Norm(
                    name=str(node.name),
                    readers=tuple(str(reader.name) for reader in readers),
                    tensors=tuple(dict.fromkeys(str(reader.inputs[0].name) for reader in readers if reader.inputs[0])),
                    axis=_CHANNEL_AXES[node.op_type],
                    weights=np.max([_weight_magnitudes(reader) for reader in quantized], axis=0),
                )
            )
    return tuple(found)


def channel_axes(norms: Collection[Norm]) -> dict[str, int]:
    """Return the tensors whose channels `smoothing_of` needs the ranges of, for `collect_ranges`."""
    return {name: norm.axis for norm in norms for name in norm.tensors}


def smoothing_of(norms: Collection[Norm], ranges: Mapping[str, ValueRange], *, alpha: float) -> Smoothing | None:
    """Return the scales of the norms' channels; None if no norm gains from any.

    `alpha` is the part of the difference between channels that the weights take.
    Norms without finite ranges, or whose channels are alike to a factor of two, are left as they are.
    """
    scales = {}
    for norm in norms:
        found = [ranges[name] for name in norm.tensors]
        extremes = np.abs([each for one in found for each in (one.channel_lows, one.channel_highs)])
        if np.isfinite(extremes).all():
            scales[norm.name] = power_of_two_scales(extremes.max(0), norm.weights, alpha=alpha)
    scales = {name: each for name, each in scales.items() if (each != 1).any()}
    if not scales:
        return None
    return Smoothing(norms=tuple(norm for norm in norms if norm.name in scales), scales=scales)


def _readers(node: ir.Node) -> list[ir.Node]:
    """Return the layers that read a norm; none if anything else does, or if its scale and bias cannot be changed."""
    axis = _CHANNEL_AXES.get(node.op_type)
    if axis is None or node.domain or any(each.uses() or each.is_graph_output() for each in node.outputs[1:]):
        return []
    channels = static_shape(node.outputs[0])[axis]
    affine = [constant(value) for value in node.inputs[1:] if value is not None]
    if not affine or any(each is None or each.shape != (channels,) or each.dtype != np.float32 for each in affine):
        return []
    readers = list(_readers_of_rows(node.outputs[0], axis))
    return [] if None in readers else [reader for reader in readers if reader is not None]


def _readers_of_rows(value: ir.Value, axis: int) -> Iterator[ir.Node | None]:
    """Yield the layers that read a value, or moved rows of it; None for each other reader."""
    if value.is_graph_output():
        yield None
    for use in value.uses():
        if use.idx == 0 and _is_layer_over(use.node, axis):
            yield use.node
        elif use.idx == 0 and axis == -1 and _moves_rows(use.node):
            yield from _readers_of_rows(use.node.outputs[0], axis)
        else:
            yield None


def _is_layer_over(node: ir.Node, axis: int) -> bool:
    """Whether a node is a layer with float weights of its own that multiplies the channels at this axis."""
    if float_weight(node) is None or node.inputs[1] is None or only_consumer(node.inputs[1]) is not node:
        return False
    return node.attributes.get_int("group", 1) == 1 and axis == channel_axis(node)


def _moves_rows(node: ir.Node) -> bool:
    """Whether an operator moves vectors of channels, along the last axis, as a whole."""
    if node.domain or node.inputs[0] is None:
        return False
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    match node.op_type:
        case "Reshape":
            return before[-1] == after[-1]
        case "Transpose":
            order = node.attributes.get_ints("perm", [])
            return bool(order) and order[-1] == len(before) - 1
        case "Gather":
            return node.attributes.get_int("axis", 0) % len(before) != len(before) - 1
    return False


def _divide_output(graph: ir.Graph, norm: ir.Node, scales: Array) -> None:
    for index in range(1, len(norm.inputs)):
        if norm.inputs[index] is not None:
            multiply_channels(graph, norm, index, 1 / scales, 0)


def _weight_magnitudes(layer: ir.Node) -> Array:
    """Return the largest magnitude of a layer's weights for each input channel, (channels,)."""
    weight = constant(layer.inputs[1])
    assert weight is not None
    return channel_magnitudes(weight, input_axis(layer))
