"""Change element types node by node and insert Casts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.export.ir_helpers import constant, initializer, module_of
from edgevit.types import Array

FP16, FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT

# Operators that only move or select values.
DATA_MOVEMENT = frozenset({"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
                           "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
                           "Transpose", "Trilu", "Unsqueeze", "Where"})  # fmt: skip
_ANY_INPUT_TYPE = frozenset({"Cast", "Shape", "Size"})  # a Cast of their input is useless

_Uses: TypeAlias = Mapping[tuple[ir.Node, int], ir.DataType]  # the new type of each fp32 input


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is fp32, the type that can become fp16."""
    return value is not None and value.dtype == FP32


def computes(node: ir.Node) -> bool:
    """Whether the node has an fp32 input or output."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def to_half(array: Array) -> Array:
    """Convert to fp16; values beyond its range become infinite, without a warning."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def is_known(node: ir.Node, opset: int) -> bool:
    """Whether the operator is a standard ONNX operator of this opset."""
    return _schema(node, opset) is not None


def takes_fp16(node: ir.Node, index: int, opset: int) -> bool:
    """Whether ONNX allows fp16 at this input of the node; it does not for the scales of a Resize, for example."""
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
    """Return the type variable of a parameter; the last parameter of a schema may be variadic."""
    return formal[min(index, len(formal) - 1)].type_str if formal else ""


def _allows_fp16(schema: onnx.defs.OpSchema, type_name: str) -> bool:
    return any(
        constraint.type_param_str == type_name and "tensor(float16)" in constraint.allowed_type_strs
        for constraint in schema.type_constraints
    )


def _fp16_outputs(node: ir.Node, opset: int) -> Iterator[ir.Value]:
    """Yield the outputs that have the type of an input that becomes fp16. A Cast to fp32 becomes a Cast to fp16."""
    schema = _schema(node, opset)
    if schema is None:
        return
    fp16_types = {
        _type_name(schema.inputs, index)
        for index, value in enumerate(node.inputs)
        if is_float(value) and takes_fp16(node, index, opset)
    }
    for index, value in enumerate(node.outputs):
        if is_float(value) and (node.op_type == "Cast" or _type_name(schema.outputs, index) in fp16_types):
            yield value


def retype(model: ir.Model, kept: AbstractSet[ir.Node]) -> None:
    """Convert the model to fp16 in place, except for the `kept` nodes.

    The inputs and outputs of the graph stay in fp32. A value that is read in the other type gets one Cast, which all
    its readers share.
    """
    opset = model.opset_imports.get("", 0)
    nodes = list(model.graph.all_nodes())
    outputs = [value for value in model.graph.outputs if is_float(value)]
    weights = [value for value in model.graph.initializers.values() if is_float(value)]
    uses = {
        (node, index): FP16 if node not in kept and takes_fp16(node, index, opset) else FP32
        for node in nodes
        for index, value in enumerate(node.inputs)
        if is_float(value) and node.op_type not in _ANY_INPUT_TYPE
    }
    fp16_values = [value for node in nodes if node not in kept for value in _fp16_outputs(node, opset)]
    for value in fp16_values:
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
        if value.dtype != FP32:
            replace_output(model.graph, value, _cast(model.graph, value, FP32, casts), suffix="fp16")
    common_passes.NameFixPass()(model)  # a value of the model may already have the name of a Cast's output


def set_type(value: ir.Value, dtype: ir.DataType) -> None:
    """Set the type of a value. The old type object is not changed: values of other models may share it."""
    value.type = ir.TensorType(dtype)


def _retype_weight(graph: ir.Graph, value: ir.Value, uses: _Uses) -> None:
    """Store a weight in the type that its readers need; in both types if they differ."""
    fp16_uses = [use for use in value.uses() if uses.get((use.node, use.idx)) == FP16]
    array = constant(value)
    if not fp16_uses or array is None:
        return
    if len(fp16_uses) == len(list(value.uses())) and not value.is_graph_output():
        value.const_value = ir.tensor(to_half(array), name=value.name)
        set_type(value, FP16)
        return
    fp16_weight = initializer(graph, f"{value.name}_fp16", to_half(array))
    for use in fp16_uses:
        use.node.replace_input_with(use.idx, fp16_weight)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, casts: dict[ir.Value, ir.Value]) -> ir.Value:
    """Return the value cast to `dtype`. The Cast follows the producer and is shared by all readers."""
    if value in casts:
        return casts[value]
    name = f"{value.name}_{'fp16' if dtype == FP16 else 'fp32'}"
    producer = value.producer()
    module = module_of(producer) if producer is not None else ""
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{module}/Cast_{name}")
    if producer is not None and producer.graph is not None:
        producer.graph.insert_after(producer, cast)
    else:
        graph.insert_before(graph[0], cast)
    output = cast.outputs[0]
    output.name, output.shape = name, value.shape
    set_type(output, dtype)
    casts[value] = output
    return output


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value, *, suffix: str) -> None:
    """Make `new` the output of the graph in place of `old`, under its name; `old` gets the suffix."""
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    old.name, new.name = f"{old.name}_{suffix}", old.name
