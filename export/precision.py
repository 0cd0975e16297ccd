"""fp16: a typed graph in which each operator has one precision and Casts stand at the borders between them.

TensorRT 11 and TensorRT-RTX know no precision flag: what runs in fp16 is what the graph types as fp16, and the same
graph serves TensorRT 10 with STRONGLY_TYPED. So this decides node by node, from what each tensor reaches on calibration
images and from what each node is for. In fp32 stay

* what comes near fp16's largest number, 65504, or holds nothing but numbers below its smallest normal one, 6.1e-5,
  and readers of constants that fp16 cannot hold, an epsilon of 1e-8 above all;
* exponentials, the sums over them and the division by those: the performer's phi spans more decades than fp16 has;
* the statistics of norms that are written out, down to the division.

Norms and Softmax that stand in the graph as one operator are typed fp16: engines keep the statistics inside them in
fp32 by themselves, and a Cast at their side would part them from the kernel that they fuse with. For the same reason
attention (scale on q, product, Softmax, product) has no Cast within, as long as what it reaches allows it.

onnxconverter-common and ONNX Runtime's converter, its descendant, block operators by name, measure nothing and squeeze
constants into range (1e-8 becomes 6e-8). ModelOpt's AutoCast measures; it knows no regions, so the exponential, the sum
and the epsilon each go their own way, and it pins its own versions of onnx and onnxruntime.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError, UsageError
from edgevit.export.graph import OnnxGraph, constant, initializer, module_of
from edgevit.tensors import Array

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14  # 6.1e-5; below it fp16 loses bits, below 3e-8 everything
HEADROOM = 4.0  # other images reach further than the calibration images: this many times, at most
_EXACT_INTEGERS = 2048  # the largest integer up to which fp16 holds all

Feeds: TypeAlias = Mapping[str, Array]
# Makes a graph ready to run; its answers come by output name.
Load: TypeAlias = Callable[[OnnxGraph], Callable[[Feeds], Mapping[str, Array]]]

_MOVING = frozenset({"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
                     "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu",
                     "Unsqueeze", "Where"})  # fmt: skip
_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool"})
_SQUARES = frozenset({"ReduceSumSquare", "ReduceL2"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "Einsum"})
_ELEMENTWISE = frozenset({"Abs", "Add", "Clip", "Div", "Floor", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal",
                          "Round", "Sqrt", "Sub", "Sum", *_SUMS, *_SQUARES, "ReduceMax", "ReduceMin"})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNode:
    """A node that stays in fp32. Its name is `<PyTorch module path>/<operator>`."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRange:
    """A weight of which fp16 cannot hold all values as they are."""

    name: str
    values: int
    beyond: int  # finite values beyond 65504
    denormal: int  # values below the smallest normal number, which lose bits
    lost: int  # of these, values that become 0
    stays_fp32: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """What of a graph is fp16, what is not, and why."""

    nodes: int  # that compute with floating-point numbers, kept ones included
    kept: tuple[KeptNode, ...]
    weights: tuple[WeightRange, ...]  # only those that fp16 cannot hold as they are
    casts: int  # in the typed graph

    @property
    def summary(self) -> str:
        return f"{len(self.kept)} of {self.nodes} nodes in fp32, {self.casts} Casts"

    @property
    def modules(self) -> tuple[str, ...]:
        """The PyTorch modules with a node in fp32."""
        return tuple(dict.fromkeys(node.name.rpartition("/")[0] for node in self.kept))

    def to_json(self) -> dict[str, Any]:
        return {"summary": self.summary, **asdict(self)}


def to_fp16(
    graph: OnnxGraph, feeds: Sequence[Feeds], *, load: Load, io: Literal["fp32", "fp16"] = "fp32"
) -> tuple[OnnxGraph, PrecisionPlan]:
    """The graph typed for fp16, and the plan it was typed by. `graph` has passed `check`, so that every type is known.

    `load` runs a graph in fp32; `feeds` are calibration inputs, photos rather than noise. Inputs and outputs stay fp32
    unless `io` says otherwise. Raises UsageError without feeds, ExportError where the graph gives NaN on one.
    """
    start = time.perf_counter()
    model = graph.model.clone()
    common_passes.NameFixPass()(model)  # a file from elsewhere may have nodes without names
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    largest = measure(OnnxGraph(model), feeds, load=load)
    kept = _decide(_Scene(model, largest))
    weights = tuple(_weight_ranges(model, kept))
    nodes = sum(_computes(node) for node in model.graph.all_nodes())
    _retype(model, frozenset(kept), io)
    plan = PrecisionPlan(
        nodes=nodes,
        kept=tuple(
            KeptNode(name=str(node.name), operator=node.op_type, reason=reason) for node, reason in kept.items()
        ),
        weights=weights,
        casts=sum(node.op_type == "Cast" for node in model.graph.all_nodes()),
    )
    return graph.with_model("to_fp16", model, elapsed_s=time.perf_counter() - start, note=plan.summary), plan


# What tensors reach


def measure(graph: OnnxGraph, feeds: Sequence[Feeds], *, load: Load) -> dict[str, float]:
    """The largest magnitude of each fp32 tensor over all `feeds`, by the tensor's name.

    The graph works it out itself, so that no tensor leaves it. Infinity is a value that the graph holds on purpose.
    """
    if not feeds:
        raise UsageError("ranges are measured on calibration inputs, and there are none; give images with --calib")
    model = graph.model.clone()
    watched = [value for value in _values(model.graph) if _is_float(value)]
    for index, value in enumerate(watched):
        magnitude = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        output = largest.outputs[0]
        output.name, output.type, output.shape = f"largest.{index}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        model.graph.extend([magnitude, largest])
        model.graph.outputs.append(output)
    common_passes.NameFixPass()(model)
    run = load(OnnxGraph(model))
    found = dict.fromkeys((str(value.name) for value in watched), 0.0)
    for feed in feeds:
        answers = run(feed)
        for index, value in enumerate(watched):
            magnitude_here = float(answers[f"largest.{index}"])
            if math.isnan(magnitude_here):
                raise ExportError(f"{value.name} is NaN on a calibration input; find out why before asking for fp16")
            found[str(value.name)] = max(found[str(value.name)], magnitude_here)
    return found


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


# What stays fp32


class _Scene:
    """A model whose nodes are named and whose tensors are measured, and what the rules ask of it."""

    def __init__(self, model: ir.Model, largest: Mapping[str, float]) -> None:
        self.model = model
        self.opset = model.opset_imports.get("", 0)
        self.nodes = tuple(model.graph.all_nodes())
        self.order = tuple(model.graph)  # the topmost graph, producers first
        self._largest = largest

    def reaches(self, value: ir.Value | None) -> float:
        """The value's largest magnitude on the calibration inputs; 0 where it was not measured."""
        return self._largest.get(str(value.name), 0.0) if value is not None else 0.0

    def touching(self, value: ir.Value) -> Iterator[ir.Node]:
        """The node that makes a value and those that read it."""
        producer = value.producer()
        if producer is not None:
            yield producer
        yield from (use.node for use in value.uses())


_Rule: TypeAlias = Callable[[_Scene], Iterator[tuple[ir.Node, str]]]


def _decide(scene: _Scene) -> dict[ir.Node, str]:
    """The nodes that stay fp32 with the first reason that was found for each, in the order of the graph."""
    reasons: dict[ir.Node, str] = {}
    for rule in RULES:
        for node, reason in rule(scene):
            if _computes(node):
                reasons.setdefault(node, reason)
    for node in _moving_between(scene, reasons):
        reasons[node] = "moves what fp32 nodes hand on"
    return {node: reasons[node] for node in scene.nodes if node in reasons}


def _unknown(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    """Operators whose definition has no fp16, or is not ONNX's own; all of a loop's or a branch's body."""
    for node in scene.nodes:
        if node.graph is not scene.model.graph or any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            yield node, "a branch or a loop"
        elif _schema(node, scene.opset) is None:
            yield node, f"{node.domain or 'ONNX'} does not say which types this operator takes"
        elif node.op_type != "Cast" and not any(
            _takes_fp16(node, index, scene.opset) for index, value in enumerate(node.inputs) if _is_float(value)
        ):
            yield node, "the operator has no fp16 form"


def _too_large(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    for value in _values(scene.model.graph):
        reached = scene.reaches(value)
        if LARGEST / HEADROOM < reached < math.inf:
            why = f"{value.name} reaches {reached:.3g} on the calibration inputs, and fp16 ends at {LARGEST:.0f}"
            yield from ((node, why) for node in scene.touching(value))


def _too_small(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    for value in _values(scene.model.graph):
        reached = scene.reaches(value)
        if 0 < reached < SMALLEST_NORMAL:
            why = f"{value.name} never exceeds {reached:.3g}, and fp16's normal numbers begin at {SMALLEST_NORMAL:.2g}"
            yield from ((node, why) for node in scene.touching(value))


def _long_sums(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    """Sums that could pass fp16's end on the way, a mean before its division, where an engine sums up in fp16."""
    for node in scene.order:
        if node.op_type not in _SUMS | _SQUARES:
            continue
        terms = _size(node.inputs[0]) / max(_size(node.outputs[0]), 1)
        reached = scene.reaches(node.inputs[0])
        bound = terms * (reached**2 if node.op_type in _SQUARES else reached)
        if LARGEST < bound < math.inf:
            yield node, f"its {terms:.0f} terms reach {reached:.3g}, and their sum could pass fp16's {LARGEST:.0f}"


def _constants(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    """Readers of constants that are no such number in fp16, and what divides by an epsilon."""
    for value in scene.model.graph.initializers.values():
        array = constant(value) if _is_float(value) else None
        if array is None or not np.any(array):
            continue
        reached = float(np.abs(array[np.isfinite(array)]).max(initial=0))
        for node, index in value.uses():
            if reached > LARGEST:
                yield node, f"{value.name} holds {reached:.3g}, and fp16 ends at {LARGEST:.0f}"
            elif 0 < reached < SMALLEST_NORMAL and not _is_bias(node, index, array):
                why = f"{value.name} holds {reached:.3g}, and fp16's normal numbers begin at {SMALLEST_NORMAL:.2g}"
                yield from ((member, why) for member in _until_division(scene, node))


def _exponentials(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    for node in scene.order:
        if node.op_type == "Exp":
            for member in (*_serving(scene, node), *_until_division(scene, node)):
                yield member, "exponentials, their sums and the division by them"


def _statistics(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    """A variance or a length written out: the mean, the square, its sum, the root and the division."""
    for node in scene.order:
        squared = _squared(node)
        if squared is None:
            continue
        members = {node, *_serving(scene, node), *_until_division(scene, node)}
        centred = squared.producer()
        if centred is not None and centred.op_type == "Sub":
            mean = centred.inputs[1].producer() if centred.inputs[1] is not None else None
            if mean is not None and mean.op_type == "ReduceMean":
                members |= {centred, mean}
        yield from ((member, "the statistics of a norm") for member in members)


def _integers(scene: _Scene) -> Iterator[tuple[ir.Node, str]]:
    """Positions that are computed in floating point, and integers that fp16 would round."""
    for node in scene.order:
        if node.op_type != "Cast":
            continue
        source, target = node.inputs[0], node.outputs[0]
        if _is_float(source) and target.dtype is not None and target.dtype.is_integer():
            yield from ((member, "computes integers") for member in (node, *_serving(scene, node)))
        elif _is_float(target) and scene.reaches(target) > _EXACT_INTEGERS:
            yield node, f"integers up to {scene.reaches(target):.0f}, and fp16 holds all only up to {_EXACT_INTEGERS}"


RULES: tuple[_Rule, ...] = (
    _unknown,
    _constants,
    _too_large,
    _too_small,
    _long_sums,
    _exponentials,
    _statistics,
    _integers,
)


def _until_division(scene: _Scene, seed: ir.Node) -> set[ir.Node]:
    """`seed`, and the nodes on the way from it to the divisions whose denominators come from it, these included.

    The way leads through arithmetic, products of two activations and moves, and ends at a layer with weights, a norm or
    an activation; where there is no division before, `seed` is alone.
    """
    inside, ends = {seed}, set()
    for node in scene.order[scene.order.index(seed) + 1 :] if seed in scene.order else ():
        fed = [index for index, value in enumerate(node.inputs) if value is not None and value.producer() in inside]
        if not fed:
            continue
        if node.op_type == "Log" or (node.op_type == "Div" and 1 in fed) or _multiplies_by_reciprocal(node, fed):
            ends.add(node)
        elif node.op_type in _ELEMENTWISE | _MOVING | {"Exp"} or (
            node.op_type in _PRODUCTS and all(constant(value) is None for value in node.inputs)
        ):
            inside.add(node)
    if seed.op_type == "Div":
        ends.add(seed)
    on_the_way = {seed, *ends}
    for node in reversed(scene.order):
        if node in inside and any(reader in on_the_way for reader in _readers(node)):
            on_the_way.add(node)
    return on_the_way


def _multiplies_by_reciprocal(node: ir.Node, fed: Iterable[int]) -> bool:
    producers = [node.inputs[index].producer() for index in fed]  # type: ignore[union-attr]  # fed inputs exist
    return node.op_type == "Mul" and any(one is not None and one.op_type == "Reciprocal" for one in producers)


def _serving(scene: _Scene, seed: ir.Node) -> set[ir.Node]:
    """The arithmetic that serves `seed` alone, back to the products that it starts from, these included."""
    arithmetic, products = {seed}, set()
    for node in reversed(scene.order):
        readers = _readers(node)
        if not readers or not arithmetic.issuperset(readers) or any(out.is_graph_output() for out in node.outputs):
            continue
        if node.op_type in _ELEMENTWISE:
            arithmetic.add(node)
        elif node.op_type in _PRODUCTS:
            products.add(node)
    return arithmetic | products


def _moving_between(scene: _Scene, kept: Mapping[ir.Node, str]) -> set[ir.Node]:
    """Nodes that compute nothing and whose neighbours on both sides are all kept: a Cast to fp16 and back for nothing.

    Also those that bring a kept node what was kept before; rounding it to fp16 in between would undo the keeping.
    """
    found: set[ir.Node] = set()
    candidates = [node for node in scene.order if node.op_type in _MOVING and node not in kept and _computes(node)]
    while True:
        fp32 = {*kept, *found}
        new = {
            node
            for node in candidates
            if node not in found
            and fp32.issuperset(_readers(node))
            and any(value is not None and value.producer() in fp32 for value in node.inputs)
        }
        if not new:
            return found
        found |= new


def _squared(node: ir.Node) -> ir.Value | None:
    """What `node` sums the squares of; None where it does no such thing."""
    if node.op_type in _SQUARES:
        return node.inputs[0]
    square = node.inputs[0].producer() if node.op_type in _SUMS and node.inputs[0] is not None else None
    if square is None:
        return None
    if square.op_type == "Mul" and square.inputs[0] is square.inputs[1]:
        return square.inputs[0]
    exponent = constant(square.inputs[1]) if square.op_type == "Pow" else None
    return square.inputs[0] if exponent is not None and np.all(exponent == 2) else None


def _is_bias(node: ir.Node, index: int, array: Array) -> bool:
    """Whether the constant is one of many that are added to what is larger: a bias that training left near zero."""
    if node.op_type in _PRODUCTS or "Normalization" in node.op_type:
        return index == 2
    return node.op_type in ("Add", "Sub") and array.size > 1


def _readers(node: ir.Node) -> set[ir.Node]:
    return {use.node for value in node.outputs for use in value.uses()}


def _size(value: ir.Value | None) -> int:
    """The number of elements of one row, where the batch is dynamic."""
    shape = value.shape if value is not None else None
    return math.prod(dim for dim in shape if isinstance(dim, int)) if shape is not None else 1


# Weights


def _weight_ranges(model: ir.Model, kept: Iterable[ir.Node]) -> Iterator[WeightRange]:
    in_fp32 = frozenset(kept)
    for name, value in model.graph.initializers.items():
        array = constant(value) if _is_float(value) else None
        if array is None:
            continue
        magnitude = np.abs(array[np.isfinite(array) & (array != 0)])
        beyond, denormal = int((magnitude > LARGEST).sum()), int((magnitude < SMALLEST_NORMAL).sum())
        if beyond or denormal:
            yield WeightRange(
                name=name,
                values=array.size,
                beyond=beyond,
                denormal=denormal,
                lost=int((_half(magnitude) == 0).sum()),
                stays_fp32=all(use.node in in_fp32 for use in value.uses()),
            )


def _half(array: Array) -> Array:
    with np.errstate(over="ignore"):  # what overflows is read by nodes in fp32
        return array.astype(np.float16)


# The typed graph

_F16, _F32 = ir.DataType.FLOAT16, ir.DataType.FLOAT


def _retype(model: ir.Model, kept: frozenset[ir.Node], io: Literal["fp32", "fp16"]) -> None:
    """Types the model in place: fp16 but for the `kept` nodes, with one Cast for each value that is read as both."""
    opset = model.opset_imports.get("", 0)
    nodes = list(model.graph.all_nodes())
    wanted = {
        (node, index): _F16 if node not in kept and _takes_fp16(node, index, opset) else _F32
        for node in nodes
        for index, value in enumerate(node.inputs)
        if _is_float(value)
    }
    halves = [value for node in nodes if node not in kept for value in _fp16_outputs(node, opset)]
    outputs = [value for value in model.graph.outputs if _is_float(value)]
    if io == "fp16":
        halves += [value for value in model.graph.inputs if _is_float(value)]
    weights = [value for value in model.graph.initializers.values() if _is_float(value)]
    for value in halves:
        value.type = ir.TensorType(_F16)
    for node in nodes:
        if node.op_type == "Cast" and node.outputs[0].dtype == _F16:
            node.attributes["to"] = ir.AttrInt64("to", int(_F16))
    for value in weights:
        _retype_weight(model.graph, value, wanted)
    casts: dict[ir.Value, ir.Value] = {}
    for (node, index), dtype in wanted.items():
        read = node.inputs[index]
        if read is not None and read.dtype != dtype and node.op_type != "Cast":  # a Cast reads either
            node.replace_input_with(index, _cast(model.graph, read, dtype, casts))
    for value in outputs:
        dtype = _F16 if io == "fp16" else _F32
        if value.dtype != dtype:
            _cast_output(model.graph, value, dtype, casts)


def _retype_weight(graph: ir.Graph, value: ir.Value, wanted: Mapping[tuple[ir.Node, int], ir.DataType]) -> None:
    """Stores a weight in the type that its readers want: fp16, fp32, or both where they disagree."""
    half_uses = [use for use in value.uses() if wanted.get((use.node, use.idx)) == _F16]
    array = constant(value)
    if not half_uses or array is None:
        return
    if len(half_uses) == len(list(value.uses())) and not value.is_graph_output():
        value.const_value = ir.tensor(_half(array), name=value.name)
        value.type = ir.TensorType(_F16)
        return
    half = initializer(graph, f"{value.name}_fp16", _half(array))
    for use in half_uses:
        use.node.replace_input_with(use.idx, half)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, casts: dict[ir.Value, ir.Value]) -> ir.Value:
    """The value in the other type, by a Cast that all its readers share, beside the node that makes it."""
    if value in casts:
        return casts[value]
    suffix = "fp16" if dtype == _F16 else "fp32"
    producer = value.producer()
    name = (
        f"{module_of(producer)}/Cast_{value.name}_{suffix}" if producer is not None else f"/Cast_{value.name}_{suffix}"
    )
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    if producer is not None and producer.graph is not None:
        producer.graph.insert_after(producer, cast)
    else:
        graph.insert_before(graph[0], cast)
    made = cast.outputs[0]
    made.name, made.shape, made.type = f"{value.name}_{suffix}", value.shape, ir.TensorType(dtype)
    casts[value] = made
    return made


def _cast_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, casts: dict[ir.Value, ir.Value]) -> None:
    """Puts a Cast in front of an output of the graph, which keeps its name."""
    made = _cast(graph, value, dtype, casts)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = made
    value.name, made.name = f"{value.name}_{'fp32' if dtype == _F16 else 'fp16'}", value.name


# What ONNX says of types


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == _F32


def _computes(node: ir.Node) -> bool:
    """Whether floating-point numbers go in or come out."""
    return any(_is_float(value) for value in (*node.inputs, *node.outputs))


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    return None if node.domain else _schema_of(node.op_type, opset)


@functools.cache
def _schema_of(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _type_name(formal: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """The name of a parameter's type; the last parameter stands for all further ones."""
    return formal[min(index, len(formal) - 1)].type_str if formal else ""


def _allows_fp16(schema: onnx.defs.OpSchema, type_name: str) -> bool:
    return any(
        constraint.type_param_str == type_name and "tensor(float16)" in constraint.allowed_type_strs
        for constraint in schema.type_constraints
    )


def _takes_fp16(node: ir.Node, index: int, opset: int) -> bool:
    """Whether the node's input of that index may be fp16: not the scales of a Resize, for one."""
    schema = _schema(node, opset)
    return schema is not None and _allows_fp16(schema, _type_name(schema.inputs, index))


def _fp16_outputs(node: ir.Node, opset: int) -> Iterator[ir.Value]:
    """The outputs whose type follows an input that becomes fp16; a Cast to fp32 becomes one to fp16."""
    schema = _schema(node, opset)
    if schema is None:
        return
    followed = {
        _type_name(schema.inputs, index)
        for index, value in enumerate(node.inputs)
        if _is_float(value) and _takes_fp16(node, index, opset)
    }
    for index, value in enumerate(node.outputs):
        if _is_float(value) and (node.op_type == "Cast" or _type_name(schema.outputs, index) in followed):
            yield value


# The judge


def emulate_fp16(graph: OnnxGraph) -> OnnxGraph:
    """A graph in fp32 that computes what a typed graph says: every value that it types as fp16 is rounded to fp16.

    ONNX Runtime's CPU provider has next to no fp16 arithmetic. It computes a typed graph in fp32 and drops the rounding
    between operators: a graph that overflows on an engine gives fine answers there. Here the roundings are Casts of the
    graph's own, which ONNX Runtime obeys. Within an operator this sums up in fp32, as engines do.
    """
    return graph.apply("emulate_fp16", _emulate)


def _emulate(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        array = constant(value) if value.dtype == _F16 else None
        if array is not None:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.type = ir.TensorType(_F32)
    for value in model.graph.inputs:
        if value.dtype == _F16:
            value.type = ir.TensorType(_F32)
    for node in list(model.graph.all_nodes()):
        for value in node.outputs:
            if value.dtype == _F16:
                _round(node, value)


def _round(node: ir.Node, value: ir.Value) -> None:
    """Lets all readers of a value read it rounded to fp16, in fp32."""
    graph = node.graph
    if node.op_type in _MOVING or graph is None:
        value.type = ir.TensorType(_F32)
        return
    steps = []
    if node.op_type != "Cast":
        value.type = ir.TensorType(_F32)
        steps.append(ir.node("Cast", [value], {"to": int(_F16)}, name=f"{node.name}_round"))
    narrow = steps[-1].outputs[0] if steps else value
    readers = [use for use in value.uses() if use.node not in steps]
    steps.append(ir.node("Cast", [narrow], {"to": int(_F32)}, name=f"{node.name}_widen"))
    wide = steps[-1].outputs[0]
    narrow.shape, narrow.type = value.shape, ir.TensorType(_F16)
    wide.shape, wide.type = value.shape, ir.TensorType(_F32)
    for use in readers:
        use.node.replace_input_with(use.idx, wide)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = wide
            value.name, wide.name = f"{value.name}_exact", value.name
    graph.insert_after(node, steps)
