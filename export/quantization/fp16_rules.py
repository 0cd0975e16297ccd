"""Rules that keep nodes in fp32 when a graph is converted to fp16: one function each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import constant, producers_of, readers_of
from edgevit.export.operators import PRODUCTS
from edgevit.export.quantization.dtypes import DATA_MOVEMENT, computes, is_float, is_known, takes_fp16
from edgevit.export.quantization.predictions import prediction_nodes
from edgevit.node_names import is_in_modules
from edgevit.types import Array

FP16_MAX = 65504.0
FP16_MIN_NORMAL = 2.0**-14  # 6.1e-5; smaller numbers lose bits, those below 3e-8 become 0
HEADROOM = 4.0  # magnitudes on other images may be this many times larger than on the calibration images
KEPT_ON_REQUEST = "kept in float by --keep-float"
MAX_EXACT_INTEGER = 2048.0  # fp16 holds all integers up to this one
MAX_POOLED = 1 / FP16_MIN_NORMAL  # elements of a softmax, 16384, at which equal weights leave the normal numbers

_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool"})
_SQUARES = frozenset({"ReduceSumSquare", "ReduceL2"})
_ARITHMETIC = frozenset({"Abs", "Add", "Clip", "Div", "Exp", "Floor", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal",
                         "ReduceMax", "ReduceMin", "Round", "Sqrt", "Sub", "Sum", *_SUMS, *_SQUARES})  # fmt: skip

Kept: TypeAlias = Iterator[tuple[ir.Node, str]]  # nodes that stay in fp32, each with the reason


class Fp16Context:
    """A model with the magnitudes of its tensors, as the rules need them."""

    def __init__(self, model: ir.Model, magnitudes: Mapping[str, float], keep_float: Sequence[str] = ()) -> None:
        self.model = model
        self.keep_float = keep_float  # PyTorch modules that the user keeps in fp32
        self.opset = model.opset_imports.get("", 0)
        self.order = tuple(model.graph)  # without the bodies of branches and loops; producers first
        self.nodes = tuple(model.graph.all_nodes())
        self.values = (*model.graph.inputs, *(value for node in self.order for value in node.outputs))
        self._magnitudes = magnitudes

    def magnitude(self, value: ir.Value | None) -> float:
        """Return the largest magnitude of a value on the calibration inputs; 0 if it was not measured."""
        return self._magnitudes.get(str(value.name), 0.0) if value is not None else 0.0


def find_fp32_nodes(context: Fp16Context) -> dict[ir.Node, str]:
    """Return the nodes that stay in fp32, in graph order, with the reason of the first rule that keeps each."""
    reasons: dict[ir.Node, str] = {}
    for rule in RULES:
        for node, reason in rule(context):
            if computes(node):
                reasons.setdefault(node, reason)
    for node in _moving_between(context, reasons.keys()):
        reasons[node] = "moves data between fp32 nodes"
    return {node: reasons[node] for node in context.nodes if node in reasons}


def _requested(context: Fp16Context) -> Kept:
    """Keep the modules that the user names."""
    for node in context.nodes:
        if is_in_modules(str(node.name), context.keep_float):
            yield node, KEPT_ON_REQUEST


def _no_fp16(context: Fp16Context) -> Kept:
    """Keep operators without an fp16 form, non-standard operators, and branches and loops with their bodies."""
    for node in context.nodes:
        if node.graph is not context.model.graph or any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            yield node, "a branch or a loop"
        elif not is_known(node, context.opset):
            yield node, f"a custom operator of domain {node.domain!r}, whose types are unknown"
        elif node.op_type != "Cast" and not any(
            takes_fp16(node, index, context.opset) for index, value in enumerate(node.inputs) if is_float(value)
        ):
            yield node, "the operator has no fp16 form"


def _constants(context: Fp16Context) -> Kept:
    """Keep readers of constants that fp16 cannot hold; for a tiny one, such as an epsilon, up to the division by it."""
    for value in context.model.graph.initializers.values():
        array = constant(value) if is_float(value) else None
        if array is None:
            continue
        magnitude = float(np.abs(array[np.isfinite(array)]).max(initial=0))
        for node, index in value.uses():
            if magnitude > FP16_MAX:
                yield node, f"constant {value.name} reaches {magnitude:.3g}; fp16 ends at {FP16_MAX:.0f}"
            elif 0 < magnitude < FP16_MIN_NORMAL and not _is_bias(node, index, array):
                reason = f"constant {value.name} is {magnitude:.3g}; fp16 loses bits below {FP16_MIN_NORMAL:.2g}"
                yield from ((member, reason) for member in _until_division(context, node))


def _too_large(context: Fp16Context) -> Kept:
    """Keep nodes next to a tensor that could overflow."""
    for value in context.values:
        magnitude = context.magnitude(value)
        if FP16_MAX / HEADROOM < magnitude < math.inf:
            reason = f"{value.name} reaches {magnitude:.3g} on the calibration inputs; fp16 ends at {FP16_MAX:.0f}"
            yield from ((node, reason) for node in _adjacent(value))


def _too_small(context: Fp16Context) -> Kept:
    """Keep nodes next to a tensor that would lose bits in all its values."""
    for value in context.values:
        magnitude = context.magnitude(value)
        if 0 < magnitude < FP16_MIN_NORMAL:
            reason = f"{value.name} is at most {magnitude:.3g}; fp16 loses bits below {FP16_MIN_NORMAL:.2g}"
            yield from ((node, reason) for node in _adjacent(value))


def _long_sums(context: Fp16Context) -> Kept:
    """Keep sums, and means, that could overflow before the division if an engine accumulates in fp16."""
    for node in context.order:
        if node.op_type not in _SUMS | _SQUARES:
            continue
        terms = _size(node.inputs[0]) / max(_size(node.outputs[0]), 1)
        magnitude = context.magnitude(node.inputs[0])
        bound = terms * (magnitude**2 if node.op_type in _SQUARES else magnitude)
        if FP16_MAX < bound < math.inf:
            yield node, f"a sum of {terms:.0f} terms up to {magnitude:.3g} could exceed fp16's {FP16_MAX:.0f}"


def _products(context: Fp16Context) -> Kept:
    """Keep products that are written out as multiplications and a sum: matmuls add up in fp32, too."""
    for node in context.order:
        terms = node.inputs[0].producer() if node.op_type == "ReduceSum" and node.inputs[0] is not None else None
        if terms is not None and terms.op_type == "Mul" and terms.inputs[0] is not terms.inputs[1]:
            for member in (terms, node):
                yield member, "a product written out as multiplications and a sum"


def _exponentials(context: Fp16Context) -> Kept:
    """Keep exponentials with the arithmetic before them, and the nodes up to a division by their sum."""
    powers = {node for node in context.order if node.op_type == "Exp"}
    members = _with_inputs_of(context, powers).union(*(_until_division(context, node) for node in powers))
    yield from ((member, "part of exponentials, their sum and the division by it") for member in members)


def _pooling(context: Fp16Context) -> Kept:
    """Keep a softmax over all pixels for a few tokens, and the matmul that pools the pixels with its weights.

    With 16384 pixels, the finest map at 512 x 512, equal weights are fp16's smallest normal number. Attention of as
    many queries as keys is left to the engine, which fuses it and divides at the end.
    """
    for node in context.order:
        shape = [dim if isinstance(dim, int) else 1 for dim in node.outputs[0].shape or ()]
        if node.op_type != "Softmax" or len(shape) < 2:
            continue
        pixels = shape.pop(node.attributes.get_int("axis", -1))
        if pixels >= MAX_POOLED and shape[-1] * HEADROOM < pixels:
            reason = f"equal weights over {pixels} pixels are {1 / pixels:.2g}; fp16 loses bits below"
            pooling = (reader for reader in readers_of(node) if reader.op_type in PRODUCTS)
            yield from ((member, f"{reason} {FP16_MIN_NORMAL:.2g}") for member in (node, *pooling))


def _predictions(context: Fp16Context) -> Kept:
    """Keep the layers that predict boxes and scores, and the decoding."""
    for node in prediction_nodes(context.model):
        yield node, "predicts or decodes boxes or scores"


def _statistics(context: Fp16Context) -> Kept:
    """Keep a variance or a length written out as nodes: mean, squares, their sum, root and division."""
    for node in context.order:
        squared = _squared(node)
        if squared is None:
            continue
        members = _with_inputs_of(context, {node}) | _until_division(context, node)
        centered = squared.producer()
        if centered is not None and centered.op_type == "Sub":
            members |= {mean for mean in producers_of(centered) if mean.op_type == "ReduceMean"}
            members.add(centered)
        members |= _between(context, members)
        yield from ((member, "part of a norm's statistics, as separate nodes") for member in members)


def _integers(context: Fp16Context) -> Kept:
    """Keep floating-point computations of integers, such as positions, and integers that fp16 would round."""
    for node in context.order:
        if node.op_type != "Cast":
            continue
        source, target = node.inputs[0], node.outputs[0]
        if is_float(source) and target.dtype is not None and target.dtype.is_integer():
            yield from ((member, "computes integers") for member in _with_inputs_of(context, {node}))
        elif is_float(target) and MAX_EXACT_INTEGER < context.magnitude(target) < math.inf:
            yield (
                node,
                f"integers up to {context.magnitude(target):.0f}; fp16 holds all up to {MAX_EXACT_INTEGER:.0f}",
            )


# If several rules keep a node, the first one gives the reason.
RULES: tuple[Callable[[Fp16Context], Kept], ...] = (
    _requested,
    _no_fp16,
    _constants,
    _too_large,
    _too_small,
    _long_sums,
    _products,
    _exponentials,
    _pooling,
    _predictions,
    _statistics,
    _integers,
)


def _until_division(context: Fp16Context, seed: ir.Node) -> set[ir.Node]:
    """Return `seed` and the nodes on paths from it to divisions by its result, divisions included.

    Paths lead through arithmetic, matmuls of two activations and data movement. They end at a layer with weights, a
    norm or an activation function. If there is no such division, only `seed` is returned.
    """
    inside: set[ir.Node] = {seed}
    ends: set[ir.Node] = {seed} if seed.op_type == "Div" else set()
    start = context.order.index(seed) + 1 if seed in context.order else len(context.order)
    for node in context.order[start:]:
        if inside.isdisjoint(producers_of(node)):
            continue
        if _divides(node, inside):
            ends.add(node)
        elif node.op_type in _ARITHMETIC | DATA_MOVEMENT or (
            node.op_type in PRODUCTS and all(constant(value) is None for value in node.inputs)
        ):
            inside.add(node)
    on_path = {seed, *ends}
    for node in reversed(context.order):
        if node in inside and not on_path.isdisjoint(readers_of(node)):
            on_path.add(node)
    return on_path


def _divides(node: ir.Node, by: AbstractSet[ir.Node]) -> bool:
    """Whether the node divides by the result of other nodes, or takes its logarithm, which loses accuracy alike."""
    if node.op_type == "Div":
        return node.inputs[1] is not None and node.inputs[1].producer() in by
    reciprocals = {maker for maker in producers_of(node) & by if maker.op_type == "Reciprocal"}
    return node.op_type == "Log" or (node.op_type == "Mul" and bool(reciprocals))


def _with_inputs_of(context: Fp16Context, seeds: AbstractSet[ir.Node]) -> set[ir.Node]:
    """Return nodes and the arithmetic that only they use, back to the matmuls and convolutions before, included."""
    members = _used_only_by(context, seeds)
    products = {node for node in context.order if node.op_type in PRODUCTS and readers_of(node)}
    return members | {node for node in products if members.issuperset(readers_of(node))}


def _between(context: Fp16Context, members: AbstractSet[ir.Node]) -> set[ir.Node]:
    """Return `members` and the arithmetic between them: nodes that use their results and that only they use."""
    candidates, inside = _used_only_by(context, members), set(members)
    for node in context.order:
        if node in candidates and not inside.isdisjoint(producers_of(node)):
            inside.add(node)
    return inside


def _used_only_by(context: Fp16Context, members: AbstractSet[ir.Node]) -> set[ir.Node]:
    """Return `members` and the arithmetic and data movement before them that nothing else reads."""
    found = set(members)
    for node in reversed(context.order):
        readers = readers_of(node)
        if readers and found.issuperset(readers) and node.op_type in _ARITHMETIC | DATA_MOVEMENT:
            found.add(node)
    return found


def _moving_between(context: Fp16Context, kept: Iterable[ir.Node]) -> set[ir.Node]:
    """Return the data movement between fp32 nodes: rounded to fp16, their values would lose the kept precision."""
    fp32 = set(kept)
    moving = [node for node in context.order if node.op_type in DATA_MOVEMENT and node not in fp32 and computes(node)]
    from_fp32: set[ir.Node] = set(fp32)  # nodes with an fp32 input
    for node in moving:
        inputs = [value for value in node.inputs if is_float(value)]
        if any(value.producer() in from_fp32 or value.is_graph_input() for value in inputs if value):
            from_fp32.add(node)
    to_fp32: set[ir.Node] = set(fp32)  # nodes whose output is read in fp32
    for node in reversed(moving):
        if not to_fp32.isdisjoint(readers_of(node)) or any(v.is_graph_output() for v in node.outputs):
            to_fp32.add(node)
    return {node for node in moving if node in from_fp32 and node in to_fp32}


def _squared(node: ir.Node) -> ir.Value | None:
    """Return the value whose squares `node` sums; None if it sums no squares."""
    if node.op_type in _SQUARES:
        return node.inputs[0]
    summed = node.inputs[0].producer() if node.op_type in _SUMS and node.inputs[0] is not None else None
    terms = producers_of(summed) if summed is not None and summed.op_type == "Add" else {summed}
    return next((root for term in terms if term is not None and (root := _root_of(term)) is not None), None)


def _root_of(square: ir.Node) -> ir.Value | None:
    """Return the value that the node squares; None if it is not a square."""
    if square.op_type == "Mul" and square.inputs[0] is square.inputs[1]:
        return square.inputs[0]
    exponent = constant(square.inputs[1]) if square.op_type == "Pow" else None
    return square.inputs[0] if exponent is not None and np.all(exponent == 2) else None


def _is_bias(node: ir.Node, index: int, array: Array) -> bool:
    """Whether the constant is a bias near zero: its values are added to larger ones, so that nothing is lost."""
    if node.op_type in PRODUCTS or "Normalization" in node.op_type:
        return index == 2
    return node.op_type in ("Add", "Sub") and array.size > 1


def _adjacent(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the producer of a value and its readers."""
    producer = value.producer()
    if producer is not None:
        yield producer
    yield from (use.node for use in value.uses())


def _size(value: ir.Value | None) -> int:
    """Return the number of elements, for a batch of one if the batch is dynamic."""
    shape = value.shape if value is not None else None
    return math.prod(dim for dim in shape if isinstance(dim, int)) if shape is not None else 1
