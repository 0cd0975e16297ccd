"""Tell the kind of layer that a profiled layer is, and the bytes that it has to move, from the graph of its engine."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, module_of
from edgevit.export.linear import FEW_ROWS
from edgevit.export.macs import node_macs, static_shape
from edgevit.runtimes.layer_profile import LayerTime

POINTWISE = "convolution, 1x1"
SPATIAL = "convolution, larger kernel"
DEPTHWISE = "convolution, depthwise"
GROUPED = "convolution, grouped"
LINEAR = "linear"
SHORT_LINEAR = f"linear, up to {FEW_ROWS} rows"
ATTENTION = "products of activations"
FUSED = "several products in one"
KINDS = (POINTWISE, SPATIAL, DEPTHWISE, GROUPED, LINEAR, SHORT_LINEAR, ATTENTION, FUSED)

ITEM_SIZES = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The kind of a layer, and the numbers that it reads and writes, each once."""

    kind: str
    weights: int  # read from memory, unless the whole model fits in the caches
    activations: int  # read and written, mostly in the caches


class LayerShapes:
    """The layers of a graph that multiply, found by the module and the multiply-adds of a profiled layer."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._by_module: dict[tuple[str, int], list[LayerShape]] = defaultdict(list)
        self._by_macs: dict[int, list[LayerShape]] = defaultdict(list)
        self.weights = 0  # of all layers
        for node in graph.model.graph:
            if macs := node_macs(node):
                shape = _shape(node)
                self.weights += shape.weights
                self._by_module[module_of(node), macs].append(shape)
                self._by_macs[macs].append(shape)

    def find(self, layer: LayerTime) -> LayerShape:
        """Return the shape of a layer; FUSED if no node of the graph has its multiply-adds."""
        macs = layer.macs or 0
        found = self._by_module.get((layer.module, macs)) or self._by_macs.get(macs)
        return found[0] if found else LayerShape(kind=FUSED, weights=0, activations=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindUse:
    """The layers of one kind of an engine, or of several engines."""

    layers: int = 0
    ms: float = 0.0
    giga_macs: float = 0.0
    product_ms: float = 0.0  # of the multiply-adds at the best rate of a matrix product
    roofline_ms: float = 0.0  # of these or of moving the bytes, layer by layer, whichever takes longer

    def __add__(self, other: KindUse) -> KindUse:
        return KindUse(
            layers=self.layers + other.layers,
            ms=self.ms + other.ms,
            giga_macs=self.giga_macs + other.giga_macs,
            product_ms=self.product_ms + other.product_ms,
            roofline_ms=self.roofline_ms + other.roofline_ms,
        )


def kinds_of(
    layers: Sequence[LayerTime],
    shapes: LayerShapes,
    macs_per_s: Mapping[str, float],
    *,
    read_bytes_per_s: float,
    copied_bytes_per_s: float,
) -> dict[str, KindUse]:
    """Return the time of the layers that multiply, by kind, beside that of their roofline (Williams et al. 2009).

    Weights are read at the first rate, activations are read and written at the second.
    """
    found: dict[str, KindUse] = {}
    for layer in layers:
        if not layer.macs:
            continue
        shape = shapes.find(layer)
        product_ms = 1e3 * layer.macs / macs_per_s[layer.precision]
        moving_s = shape.weights / read_bytes_per_s + shape.activations / copied_bytes_per_s
        moving_ms = 1e3 * moving_s * ITEM_SIZES.get(layer.precision, 1)
        use = KindUse(
            layers=1,
            ms=layer.ms,
            giga_macs=layer.macs / 1e9,
            product_ms=product_ms,
            roofline_ms=max(product_ms, moving_ms),
        )
        found[shape.kind] = found.get(shape.kind, KindUse()) + use
    return found


def _kind(node: ir.Node) -> str:
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution_kind(node)
    if node.op_type == "Attention" or not _is_weight(node.inputs[1]):
        return ATTENTION
    rows = math.prod(static_shape(node.inputs[0])[:-1])
    return SHORT_LINEAR if rows <= FEW_ROWS else LINEAR


def _convolution_kind(node: ir.Node) -> str:
    _, inputs, *kernel = static_shape(node.inputs[1])
    if node.attributes.get_int("group", 1) != 1:
        return DEPTHWISE if inputs == 1 else GROUPED
    return POINTWISE if math.prod(kernel) == 1 else SPATIAL


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or a constant in int8 that is dequantized."""
    producer = value.producer() if value is not None else None
    stored = producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else value
    return constant(stored) is not None


def _shape(node: ir.Node) -> LayerShape:
    kind = _kind(node)
    left, right, out = (math.prod(static_shape(value)) for value in (*node.inputs[:2], node.outputs[0]))
    weights = 0 if kind == ATTENTION else right
    return LayerShape(kind=kind, weights=weights, activations=left + right + out - weights)
