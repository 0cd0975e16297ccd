"""Change element types node by node and insert Casts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.export.ir_helpers import constant, initializer, module_of
from edgevit.types import Array

FP16, FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT
InterfaceType: TypeAlias = Literal["fp32", "fp16"]

# Operators that compute nothing: what comes out went in.
MOVING = frozenset({"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
                    "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu",
                    "Unsqueeze", "Where"})  # fmt: skip
_READING_ANY_TYPE = frozenset({"Cast", "Shape", "Size"})  # a Cast in front of these would change nothing

_Uses: TypeAlias = Mapping[tuple[ir.Node, int], ir.DataType]  # the type that a node wants at each of its fp32 inputs


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is fp32, the type that is at stake here."""
    return value is not None and value.dtype == FP32


def computes(node: ir.Node) -> bool:
    """Whether fp32 goes in or comes out."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def to_half(array: Array) -> Array:
    """The array in fp16; what lies beyond its range becomes infinite, for readers that stay in fp32."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


# What ONNX says


def is_known(node: ir.Node, opset: int) -> bool:
    """Whether ONNX itself defines the operator."""
    return _schema(node, opset) is not None


def takes_fp16(node: ir.Node, index: int, opset: int) -> bool:
    """Whether the node's input of that index may be fp16: not the scales of a Resize, for one."""
    schema = _schema(node, opset)
    return schema is not None and _allows_fp16(schema, _type_name(schema.inputs, index))


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


def _fp16_outputs(node: ir.Node, opset: int) -> Iterator[ir.Value]:
    """The outputs whose type follows an input that becomes fp16; a Cast to fp32 becomes one to fp16."""
    schema = _schema(node, opset)
    if schema is None:
        return
    followed = {
        _type_name(schema.inputs, index)
        for index, value in enumerate(node.inputs)
        if is_float(value) and takes_fp16(node, index, opset)
    }
    for index, value in enumerate(node.outputs):
        if is_float(value) and (node.op_type == "Cast" or _type_name(schema.outputs, index) in followed):
            yield value


# The typed graph


def retype(model: ir.Model, kept: AbstractSet[ir.Node], io: InterfaceType) -> None:
    """Types the model in place: fp16 but for the `kept` nodes, with one Cast for each value that is read as both."""
    opset = model.opset_imports.get("", 0)
    nodes = list(model.graph.all_nodes())
    outputs = [value for value in model.graph.outputs if is_float(value)]
    weights = [value for value in model.graph.initializers.values() if is_float(value)]
    uses = {
        (node, index): FP16 if node not in kept and takes_fp16(node, index, opset) else FP32
        for node in nodes
        for index, value in enumerate(node.inputs)
        if is_float(value) and node.op_type not in _READING_ANY_TYPE
    }
    halves = [value for node in nodes if node not in kept for value in _fp16_outputs(node, opset)]
    if io == "fp16":
        halves += [value for value in model.graph.inputs if is_float(value)]
    for value in halves:
        set_type(value, FP16)
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast":
            producer.attributes["to"] = ir.AttrInt64("to", int(FP16))
    for value in weights:
        _retype_weight(model.graph, value, uses)
    casts: dict[ir.Value, ir.Value] = {}
    for (node, index), dtype in uses.items():
        read = node.inputs[index]
        if read is not None and read.dtype != dtype:
            node.replace_input_with(index, _cast(model.graph, read, dtype, casts))
    for value in outputs:
        dtype = FP16 if io == "fp16" else FP32
        if value.dtype != dtype:
            _cast_output(model.graph, value, dtype, casts)
    common_passes.NameFixPass()(model)  # a value of the model may have had the name of a Cast's result


def set_type(value: ir.Value, dtype: ir.DataType) -> None:
    """Gives the value a type of its own: the old one may be shared with values of other models."""
    value.type = ir.TensorType(dtype)


def _retype_weight(graph: ir.Graph, value: ir.Value, uses: _Uses) -> None:
    """Stores a weight in the type that its readers want, in both where they disagree."""
    half_uses = [use for use in value.uses() if uses.get((use.node, use.idx)) == FP16]
    array = constant(value)
    if not half_uses or array is None:
        return
    if len(half_uses) == len(list(value.uses())) and not value.is_graph_output():
        value.const_value = ir.tensor(to_half(array), name=value.name)
        set_type(value, FP16)
        return
    half = initializer(graph, f"{value.name}_fp16", to_half(array))
    for use in half_uses:
        use.node.replace_input_with(use.idx, half)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, casts: dict[ir.Value, ir.Value]) -> ir.Value:
    """The value in the other type, by a Cast that all its readers share, beside the node that makes it."""
    if value in casts:
        return casts[value]
    result = f"{value.name}_{'fp16' if dtype == FP16 else 'fp32'}"
    producer = value.producer()
    module = module_of(producer) if producer is not None else ""
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{module}/Cast_{result}")
    if producer is not None and producer.graph is not None:
        producer.graph.insert_after(producer, cast)
    else:
        graph.insert_before(graph[0], cast)
    made = cast.outputs[0]
    made.name, made.shape = result, value.shape
    set_type(made, dtype)
    casts[value] = made
    return made


def _cast_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, casts: dict[ir.Value, ir.Value]) -> None:
    """Puts a Cast in front of an output of the graph, which keeps its name."""
    made = _cast(graph, value, dtype, casts)
    replace_output(graph, value, made, suffix="fp32" if dtype == FP16 else "fp16")


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value, *, suffix: str) -> None:
    """Makes `new` an output in the place and under the name of `old`."""
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    old.name, new.name = f"{old.name}_{suffix}", old.name
