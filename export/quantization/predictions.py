"""Find the part of a graph that turns the last layers' outputs into boxes, scores or probabilities.

Boxes are decoded by an Exp or a Sigmoid of what a convolution predicts, times a size in pixels: in fp16 a coordinate
above 1024 is off by half a pixel, and int8 has 255 steps for all of them. So a low precision ends before the layers
that predict such values. Logits and feature maps, which no such function follows, have no such part.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, producers_of, readers_of
from edgevit.export.operators import PRODUCTS
from edgevit.export.quantization.dtypes import is_float

_DECODING = frozenset({"Exp", "Sigmoid"})


def prediction_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the layers that predict values to be decoded, and all nodes after them, in the order of the graph.

    A layer counts if no other layer follows, if everything after it depends on such layers alone, and if an Exp or a
    Sigmoid is among that. An activation function (SiLU) or a gate before a graph output is no decoding.
    """
    order = tuple(model.graph)
    after = _after_last_layers(order)
    return [node for part in _parts(order, after) if any(map(_decodes, part)) for node in part]


def _after_last_layers(order: Sequence[ir.Node]) -> set[ir.Node]:
    """Return the last layers and the nodes that depend on nothing else, and that only such nodes read."""
    leads_to_layer: set[ir.Node] = set()
    for node in reversed(order):
        if any(reader.op_type in PRODUCTS or reader in leads_to_layer for reader in readers_of(node)):
            leads_to_layer.add(node)
    last = {node for node in order if node.op_type in PRODUCTS and node not in leads_to_layer}
    found = set(last)
    for node in order:
        producers = producers_of(node)
        if node not in leads_to_layer and not found.isdisjoint(producers) and _is_fed_by(node, found):
            found.add(node)
    for node in reversed(order):
        if node in found and not found.issuperset(readers_of(node)):
            found.remove(node)
    return found


def _parts(order: Sequence[ir.Node], nodes: set[ir.Node]) -> list[list[ir.Node]]:
    """Return the connected parts of `nodes`, each in the order of the graph."""
    part_of: dict[ir.Node, list[ir.Node]] = {}
    for node in order:
        if node not in nodes:
            continue
        part = [node]
        for before in {id(each): each for producer in producers_of(node) if (each := part_of.get(producer))}.values():
            part = before + part
        part_of.update(dict.fromkeys(part, part))
    place = {node: index for index, node in enumerate(order)}
    distinct = {id(part): part for part in part_of.values()}.values()
    return [sorted(part, key=place.__getitem__) for part in distinct]


def _decodes(node: ir.Node) -> bool:
    """Whether the node is an Exp or a Sigmoid, and the latter is not part of x * sigmoid(x)."""
    if node.domain or node.op_type not in _DECODING:
        return False
    readers = readers_of(node)
    gates = {reader for reader in readers if reader.op_type == "Mul" and node.inputs[0] in reader.inputs}
    return not readers or gates != readers


def _is_fed_by(node: ir.Node, nodes: set[ir.Node]) -> bool:
    """Whether each floating-point input of the node is a constant or comes from `nodes`."""
    return all(
        value.producer() in nodes or constant(value) is not None
        for value in node.inputs
        if is_float(value) and value is not None
    )
