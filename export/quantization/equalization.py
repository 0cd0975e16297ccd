"""Cross-layer equalization: scale the channels between two layers so that int8 loses less of them.

An activation has one int8 scale, so that channels much smaller than the largest keep few of its 255 steps. Between two
layers L1 and L2 with only operators f that keep a positive factor, f(s x) = s f(x), the channels can be scaled freely:

    L2(W2, f(W1 x + b1)) = L2(W2 S, f((W1 / S) x + b1 / S))        S = diag(s), s > 0

(Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, section 4.1). The
weights of L1 have a scale for each output channel, so that scaling them costs nothing. A depthwise L2 has one for each
of the channels too: its input is equalized fully, s = a, with the largest magnitudes a of the channels on calibration
inputs. Any other L2 shares a scale between its input channels: their magnitudes w count as much, s = sqrt(a / w)
(as in SmoothQuant, Xiao et al., ICML 2023, equation 4). All s are powers of two, so that fp32 results are equal bit by
bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, has_constant_weights, only_consumer, remove_unused
from edgevit.export.quantization.calibration import LoadGraph
from edgevit.export.quantization.channel_scaling import channel_magnitudes, multiply_channels, power_of_two_scales
from edgevit.formats import Int8Scheme
from edgevit.types import Array, Feeds

_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two convolutions with only homogeneous operators between them, by name."""

    first: str
    second: str
    tensor: str  # between them: the output of the first, or the input of the second


def find_pairs(graph: OnnxGraph, *, scheme: Int8Scheme) -> tuple[Pair, ...]:
    """Return the pairs of convolutions whose common channels can be scaled, in the order of the graph.

    If the scheme quantizes the outputs of convolutions, those before the activation function are equalized: they are
    the wider ones.
    """
    outputs = "Conv" in scheme.quantize_outputs_of
    found = ((node, _first_of(node)) for node in graph.model.graph if _is_second(node))
    return tuple(
        Pair(str(first.name), str(node.name), str(tensor.name))
        for node, first in found
        if first is not None and (tensor := first.outputs[0] if outputs else node.inputs[0]) is not None
    )


def equalize(graph: OnnxGraph, feeds: Sequence[Feeds], *, scheme: Int8Scheme, load: LoadGraph) -> OnnxGraph | None:
    """Return the graph with equalized channels, which computes the same; None if it has no pair of layers for it."""
    pairs = find_pairs(graph, scheme=scheme)
    if not pairs:
        return None
    magnitudes = _measure_magnitudes(graph, {pair.tensor for pair in pairs}, feeds, load)

    def rewrite(model: ir.Model) -> None:
        nodes = {str(node.name): node for node in model.graph}
        for pair in pairs:
            _scale(model.graph, nodes[pair.first], nodes[pair.second], magnitudes[pair.tensor])
        remove_unused(model)  # ONNX Runtime refuses weights that no node reads

    return graph.apply("equalize", rewrite)


def _is_second(node: ir.Node) -> bool:
    """Whether the input channels of a node can be scaled: a convolution that is depthwise or not grouped."""
    if node.op_type != "Conv" or not _owns_weights(node):
        return False
    return node.attributes.get_int("group", 1) == 1 or _is_depthwise(node)


def _is_depthwise(node: ir.Node) -> bool:
    weight = constant(node.inputs[1])
    group = node.attributes.get_int("group", 1)
    return weight is not None and group > 1 and weight.shape[:2] == (group, 1)


def _owns_weights(node: ir.Node) -> bool:
    """Whether the weight and the bias are float32 constants that no other node reads."""
    values = [value for value in node.inputs[1:] if value is not None]
    return has_constant_weights(node) and all(
        only_consumer(value) is node and value.dtype == ir.DataType.FLOAT for value in values
    )


def _first_of(second: ir.Node) -> ir.Node | None:
    """Return the convolution whose output, but for homogeneous operators, only `second` reads."""
    value = second.inputs[0]
    while value is not None and only_consumer(value) is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Conv":
            return node if _owns_weights(node) else None
        if not _is_homogeneous(node):
            return None
        value = node.inputs[0]
    return None


def _is_homogeneous(node: ir.Node) -> bool:
    if node.op_type == "Clip":
        low, high = (constant(node.inputs[index]) if len(node.inputs) > index else None for index in (1, 2))
        no_high = len(node.inputs) < 3 or node.inputs[2] is None or (high is not None and float(high) == np.inf)
        return low is not None and float(low) == 0 and no_high
    return node.op_type in _HOMOGENEOUS


def _measure_magnitudes(
    graph: OnnxGraph, names: set[str], feeds: Sequence[Feeds], load: LoadGraph
) -> Mapping[str, Array]:
    """Return the largest magnitude of each channel of the named tensors, (channels,), over all inputs."""
    model = graph.model.clone()
    outputs = {value.name for value in model.graph.outputs}
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value.name in names - outputs)
    run = load(OnnxGraph(model))
    found: dict[str, Array] = {}
    for feed in feeds:
        for name, array in run(feed).items():
            if name in names:
                largest = channel_magnitudes(array, 1)
                found[name] = np.maximum(found.get(name, largest), largest)
    return found


def _scale(graph: ir.Graph, first: ir.Node, second: ir.Node, magnitudes: Array) -> None:
    """Divide the output channels of `first` by powers of two, and multiply the input channels of `second` by them."""
    weight = constant(second.inputs[1])
    assert weight is not None
    if _is_depthwise(second):
        axis, scales = 0, power_of_two_scales(magnitudes, np.ones_like(magnitudes), alpha=1)
    else:
        axis, scales = 1, power_of_two_scales(magnitudes, channel_magnitudes(weight, 1), alpha=0.5)
    multiply_channels(graph, second, 1, scales, axis)
    for index in range(1, len(first.inputs)):
        if first.inputs[index] is not None:
            multiply_channels(graph, first, index, 1 / scales, 0)
