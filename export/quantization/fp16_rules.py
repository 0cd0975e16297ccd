"""What stays in fp32 when a graph becomes fp16: one rule a function, each node with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.dtypes import MOVING, InterfaceType, computes, is_float, is_known, takes_fp16
from edgevit.types import Array

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14  # 6.1e-5; below it fp16 loses bits, below 3e-8 everything
HEADROOM = 4.0  # other images may reach so many times further than the calibration images
EXACT_INTEGERS = 2048.0  # fp16 holds all integers up to here

_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool"})
_SQUARES = frozenset({"ReduceSumSquare", "ReduceL2"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "Einsum"})
_ARITHMETIC = frozenset({"Abs", "Add", "Clip", "Div", "Exp", "Floor", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal",
                         "ReduceMax", "ReduceMin", "Round", "Sqrt", "Sub", "Sum", *_SUMS, *_SQUARES})  # fmt: skip

Found: TypeAlias = Iterator[tuple[ir.Node, str]]


class Scene:
    """A model, what its tensors reach on the calibration inputs, and what its inputs and outputs are to be."""

    def __init__(self, model: ir.Model, largest: Mapping[str, float], io: InterfaceType) -> None:
        self.model = model
        self.io = io
        self.opset = model.opset_imports.get("", 0)
        self.order = tuple(model.graph)  # the topmost graph, producers first
        self.nodes = tuple(model.graph.all_nodes())
        self.values = (*model.graph.inputs, *(value for node in self.order for value in node.outputs))
        self._largest = largest

    def reaches(self, value: ir.Value | None) -> float:
        """The value's largest magnitude on the calibration inputs; 0 where it was not measured."""
        return self._largest.get(str(value.name), 0.0) if value is not None else 0.0


def decide(scene: Scene) -> dict[ir.Node, str]:
    """The nodes that stay fp32 in the order of the graph, with the first reason that was found for each."""
    reasons: dict[ir.Node, str] = {}
    for rule in RULES:
        for node, reason in rule(scene):
            if computes(node):
                reasons.setdefault(node, reason)
    for node in _moving_between(scene, reasons.keys()):
        reasons[node] = "moves what is fp32 on both sides"
    return {node: reasons[node] for node in scene.nodes if node in reasons}


# The rules


def _no_fp16(scene: Scene) -> Found:
    """Operators whose definition has no fp16 or is not ONNX's own; branches and loops with all that is in them."""
    for node in scene.nodes:
        if node.graph is not scene.model.graph or any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            yield node, "a branch or a loop"
        elif not is_known(node, scene.opset):
            yield node, f"the operator is {node.domain or 'nobody'}'s own, and its types are not known"
        elif node.op_type != "Cast" and not any(
            takes_fp16(node, index, scene.opset) for index, value in enumerate(node.inputs) if is_float(value)
        ):
            yield node, "the operator has no fp16 form"


def _constants(scene: Scene) -> Found:
    """Readers of constants that fp16 cannot hold, and for an epsilon what divides by it."""
    for value in scene.model.graph.initializers.values():
        array = constant(value) if is_float(value) else None
        if array is None:
            continue
        reached = float(np.abs(array[np.isfinite(array)]).max(initial=0))
        for node, index in value.uses():
            if reached > LARGEST:
                yield node, f"{value.name} holds {reached:.3g}, and fp16 ends at {LARGEST:.0f}"
            elif 0 < reached < SMALLEST_NORMAL and not _is_bias(node, index, array):
                why = f"{value.name} holds {reached:.3g}, and fp16's normal numbers begin at {SMALLEST_NORMAL:.2g}"
                yield from ((member, why) for member in _until_division(scene, node))


def _too_large(scene: Scene) -> Found:
    for value in scene.values:
        reached = scene.reaches(value)
        if LARGEST / HEADROOM < reached < math.inf:
            why = f"{value.name} reaches {reached:.3g} on the calibration inputs, and fp16 ends at {LARGEST:.0f}"
            yield from ((node, why) for node in _touching(value))


def _too_small(scene: Scene) -> Found:
    for value in scene.values:
        reached = scene.reaches(value)
        if 0 < reached < SMALLEST_NORMAL:
            why = f"{value.name} never exceeds {reached:.3g}, and fp16's normal numbers begin at {SMALLEST_NORMAL:.2g}"
            yield from ((node, why) for node in _touching(value))


def _long_sums(scene: Scene) -> Found:
    """Sums that could pass fp16's end on the way, a mean before its division, where an engine sums up in fp16."""
    for node in scene.order:
        if node.op_type not in _SUMS | _SQUARES:
            continue
        terms = _size(node.inputs[0]) / max(_size(node.outputs[0]), 1)
        reached = scene.reaches(node.inputs[0])
        bound = terms * (reached**2 if node.op_type in _SQUARES else reached)
        if LARGEST < bound < math.inf:
            yield node, f"its {terms:.0f} terms reach {reached:.3g}, and their sum could pass fp16's {LARGEST:.0f}"


def _exponentials(scene: Scene) -> Found:
    for node in scene.order:
        if node.op_type == "Exp":
            for member in _serving(scene, node) | _until_division(scene, node):
                yield member, "exponentials, their sums and the division by them"


def _statistics(scene: Scene) -> Found:
    """A variance or a length written out: the mean, the square, its sum, the root and the division."""
    for node in scene.order:
        squared = _squared(node)
        if squared is None:
            continue
        members = _serving(scene, node) | _until_division(scene, node)
        centred = squared.producer()
        if centred is not None and centred.op_type == "Sub":
            members |= {mean for mean in _makers(centred) if mean.op_type == "ReduceMean"}
            members.add(centred)
        members |= _between(scene, members)
        yield from ((member, "the statistics of a norm, written out") for member in members)


def _integers(scene: Scene) -> Found:
    """Positions that are computed in floating point, and integers that fp16 would round."""
    for node in scene.order:
        if node.op_type != "Cast":
            continue
        source, target = node.inputs[0], node.outputs[0]
        if is_float(source) and target.dtype is not None and target.dtype.is_integer():
            yield from ((member, "computes integers") for member in _serving(scene, node))
        elif is_float(target) and EXACT_INTEGERS < scene.reaches(target) < math.inf:
            yield (
                node,
                f"integers up to {scene.reaches(target):.0f}, and fp16 holds all only up to {EXACT_INTEGERS:.0f}",
            )


# A node that several rules keep is given the first one's reason.
RULES: tuple[Callable[[Scene], Found], ...] = (
    _no_fp16,
    _constants,
    _too_large,
    _too_small,
    _long_sums,
    _exponentials,
    _statistics,
    _integers,
)


# The regions


def _until_division(scene: Scene, seed: ir.Node) -> set[ir.Node]:
    """`seed`, and the nodes on the way from it to divisions whose denominators come from it, these included.

    The way leads through arithmetic, products of two activations and moves. It ends at a layer with weights, a norm or
    an activation; where no division came before, `seed` is alone.
    """
    inside: set[ir.Node] = {seed}
    ends: set[ir.Node] = {seed} if seed.op_type == "Div" else set()
    start = scene.order.index(seed) + 1 if seed in scene.order else len(scene.order)
    for node in scene.order[start:]:
        if inside.isdisjoint(_makers(node)):
            continue
        if _divides(node, inside):
            ends.add(node)
        elif node.op_type in _ARITHMETIC | MOVING or (
            node.op_type in _PRODUCTS and all(constant(value) is None for value in node.inputs)
        ):
            inside.add(node)
    on_the_way = {seed, *ends}
    for node in reversed(scene.order):
        if node in inside and not on_the_way.isdisjoint(_readers(node)):
            on_the_way.add(node)
    return on_the_way


def _divides(node: ir.Node, by: AbstractSet[ir.Node]) -> bool:
    """Whether the node divides by what others compute, or takes its logarithm, which asks for the same care."""
    if node.op_type == "Div":
        return node.inputs[1] is not None and node.inputs[1].producer() in by
    reciprocals = {maker for maker in _makers(node) & by if maker.op_type == "Reciprocal"}
    return node.op_type == "Log" or (node.op_type == "Mul" and bool(reciprocals))


def _serving(scene: Scene, seed: ir.Node) -> set[ir.Node]:
    """`seed` and the arithmetic that serves it alone, back to the products that it starts from, these included."""
    members = _alone_for(scene, {seed})
    products = {node for node in scene.order if node.op_type in _PRODUCTS and _readers(node)}
    return members | {node for node in products if members.issuperset(_readers(node))}


def _between(scene: Scene, members: AbstractSet[ir.Node]) -> set[ir.Node]:
    """`members`, and the arithmetic that starts from what they compute and serves them alone."""
    serving, inside = _alone_for(scene, members), set(members)
    for node in scene.order:
        if node in serving and not inside.isdisjoint(_makers(node)):
            inside.add(node)
    return inside


def _alone_for(scene: Scene, members: AbstractSet[ir.Node]) -> set[ir.Node]:
    """`members`, and the arithmetic and moves that nothing else reads."""
    serving = set(members)
    for node in reversed(scene.order):
        readers = _readers(node)
        if readers and serving.issuperset(readers) and node.op_type in _ARITHMETIC | MOVING:
            serving.add(node)
    return serving


def _moving_between(scene: Scene, kept: Iterable[ir.Node]) -> set[ir.Node]:
    """Nodes that compute nothing on the way from fp32 to fp32, where rounding would undo what was kept."""
    fp32 = set(kept)
    moving = [node for node in scene.order if node.op_type in MOVING and node not in fp32 and computes(node)]
    interface = scene.io == "fp32"
    filled: set[ir.Node] = set(fp32)  # nodes that hand on what is fp32
    for node in moving:
        inputs = [value for value in node.inputs if is_float(value)]
        if any(value.producer() in filled or (interface and value.is_graph_input()) for value in inputs if value):
            filled.add(node)
    awaited: set[ir.Node] = set(fp32)  # nodes that are read in fp32
    for node in reversed(moving):
        if not awaited.isdisjoint(_readers(node)) or (interface and any(v.is_graph_output() for v in node.outputs)):
            awaited.add(node)
    return {node for node in moving if node in filled and node in awaited}


# Looks at one node


def _squared(node: ir.Node) -> ir.Value | None:
    """What `node` sums the squares of; None where it does no such thing."""
    if node.op_type in _SQUARES:
        return node.inputs[0]
    summed = node.inputs[0].producer() if node.op_type in _SUMS and node.inputs[0] is not None else None
    terms = _makers(summed) if summed is not None and summed.op_type == "Add" else {summed}
    return next((root for term in terms if term is not None and (root := _root_of(term)) is not None), None)


def _root_of(square: ir.Node) -> ir.Value | None:
    """What the node is the square of; None where it is none."""
    if square.op_type == "Mul" and square.inputs[0] is square.inputs[1]:
        return square.inputs[0]
    exponent = constant(square.inputs[1]) if square.op_type == "Pow" else None
    return square.inputs[0] if exponent is not None and np.all(exponent == 2) else None


def _is_bias(node: ir.Node, index: int, array: Array) -> bool:
    """Whether the constant is one of many that are added to what is larger: a bias that training left near zero."""
    if node.op_type in _PRODUCTS or "Normalization" in node.op_type:
        return index == 2
    return node.op_type in ("Add", "Sub") and array.size > 1


def _touching(value: ir.Value) -> Iterator[ir.Node]:
    """The node that makes a value and those that read it."""
    producer = value.producer()
    if producer is not None:
        yield producer
    yield from (use.node for use in value.uses())


def _makers(node: ir.Node) -> set[ir.Node]:
    producers = (value.producer() for value in node.inputs if value is not None)
    return {producer for producer in producers if producer is not None}


def _readers(node: ir.Node) -> set[ir.Node]:
    return {use.node for value in node.outputs for use in value.uses()}


def _size(value: ir.Value | None) -> int:
    """The number of elements, of one row where the batch is dynamic."""
    shape = value.shape if value is not None else None
    return math.prod(dim for dim in shape if isinstance(dim, int)) if shape is not None else 1
