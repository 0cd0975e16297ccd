"""Convert the graph to an older opset.

Graphs are captured at opset 21; engines support different opsets. From 17 to 21 most operators only gained element
types, so that only the opset number changes. Forms that the older opset writes differently are rewritten. Every node is
then compared with the operator's schema in the older opset: attributes that it lacks are removed if they have their
default value, and anything else that it cannot express raises an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.ir_helpers import constant, int64_initializer, remove_unused, static_size

OLDEST_OPSET = 17
# Attribute values that an operator accepts from an opset on; schemas list them only in their documentation.
NEW_VALUES: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("Pad", "mode"): {"wrap": 19},
    ("Resize", "coordinate_transformation_mode"): {"half_pixel_symmetric": 19},
    ("ScatterElements", "reduction"): {"max": 18, "min": 18},
    ("ScatterND", "reduction"): {"max": 18, "min": 18},
}
# Operators whose inputs changed their meaning in an opset although the schema's form did not.
_CHANGED_MEANING = {"GroupNormalization": 21}
_GRID_SAMPLE_16 = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}


class OpsetError(ExportError):
    """An operator cannot be expressed in an opset. `required` is the oldest opset that can."""

    def __init__(self, node: ir.Node, form: str, required: int) -> None:
        super().__init__(f"{node.name}: {form} needs opset {required}; use --opset {required} or a newer runtime")
        self.required = required


def downgrade_opset(model: ir.Model, opset: int) -> None:
    """Convert the model to `opset`. Raises ExportError if it is out of range, OpsetError if it cannot be expressed."""
    current = model.opset_imports[""]
    if not OLDEST_OPSET <= opset <= current:
        raise ExportError(f"opset {opset} is not supported: use one from {OLDEST_OPSET} to {current}")
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        if opset < current:
            _rewrite(node, model.graph, opset)
            _require_expressible(node, opset, current)
        node.version = None
    model.opset_imports[""] = opset
    model.ir_version = 10 if opset >= 21 else 9 if opset >= 20 else 8
    remove_unused(model)


# Forms that older opsets write differently


def _rewrite(node: ir.Node, graph: ir.Graph, opset: int) -> None:
    if node.op_type == "GridSample" and opset < 20:
        _to_grid_sample_16(node)
    elif node.op_type == "DFT" and opset < 20:
        _to_dft_17(node)
    elif opset >= 18:
        return
    elif node.op_type == "Split":
        _to_split_13(node, graph)
    elif node.op_type == "Pad":
        _to_pad_13(node, graph)
    elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
        _to_reduce_13(node)


def _to_grid_sample_16(node: ir.Node) -> None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is not None and len(shape) != 4:
        raise OpsetError(node, f"GridSample of {len(shape)} dimensions", 20)
    mode = node.attributes.get_string("mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", _GRID_SAMPLE_16[mode])


def _to_dft_17(node: ir.Node) -> None:
    axis = np.asarray(-2) if len(node.inputs) < 3 or node.inputs[2] is None else constant(node.inputs[2])
    if axis is None:
        raise OpsetError(node, "DFT with an axis that is not constant", 20)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    place = int(axis) if shape is None else int(axis) % len(shape)  # OpenVINO takes a negative axis for another one
    node.attributes["axis"] = ir.AttrInt64("axis", place)
    node.resize_inputs(min(len(node.inputs), 2))


def _to_split_13(node: ir.Node, graph: ir.Graph) -> None:
    """Split-13 divides evenly if it is given no sizes; `num_outputs` may leave a smaller last part."""
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return
    axis = node.attributes.get_int("axis", 0)
    whole, parts = static_size(node.inputs[0], axis), len(node.outputs)
    sizes = [size for value in node.outputs if (size := static_size(value, axis)) is not None]
    if whole is not None:
        size = -(-whole // parts)
        sizes = [size] * (parts - 1) + [whole - size * (parts - 1)]
    if len(sizes) < parts:  # they may be unequal
        raise OpsetError(node, "Split into parts of unknown size", 18)
    if len(set(sizes)) > 1:
        node.resize_inputs(2)
        node.replace_input_with(1, int64_initializer(graph, f"{node.name}.sizes", sizes))


def _to_pad_13(node: ir.Node, graph: ir.Graph) -> None:
    """Pad-13 takes an amount for every axis."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        node.resize_inputs(min(len(node.inputs), 3))
        return
    pads, axes = constant(node.inputs[1]), constant(node.inputs[3])
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if pads is None or axes is None or shape is None:
        raise OpsetError(node, "Pad along axes that are not constant", 18)
    rank = len(shape)
    every_axis = np.zeros((2, rank), np.int64)
    every_axis[:, axes % rank] = pads.reshape(2, -1)
    node.replace_input_with(1, int64_initializer(graph, f"{node.name}.pads", every_axis.reshape(-1).tolist()))
    node.resize_inputs(3)


def _to_reduce_13(node: ir.Node) -> None:
    """The axes of a reduction are an attribute; without it, all axes are reduced."""
    keeps_input = bool(node.attributes.get_int("noop_with_empty_axes", 0))
    node.attributes.pop("noop_with_empty_axes", None)
    value = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant(value)
    if value is not None and axes is None:
        raise OpsetError(node, f"{node.op_type} with axes that are not constant", 18)
    if axes is not None and axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())
    elif keeps_input:
        raise OpsetError(node, f"{node.op_type} without axes that returns its input", 18)
    node.resize_inputs(1)


# Comparison with the older schema


def _require_expressible(node: ir.Node, opset: int, current: int) -> None:
    """Remove default attributes that the older schema lacks. Raises OpsetError for anything else that it lacks."""
    new = onnx.defs.get_schema(node.op_type, current)
    if _CHANGED_MEANING.get(node.op_type, 0) > opset:
        raise OpsetError(node, node.op_type, _CHANGED_MEANING[node.op_type])
    old = _schema(node.op_type, opset)
    if old is None:
        raise OpsetError(node, node.op_type, _first_opset(node.op_type, opset, current))
    for name in list(node.attributes):
        attribute = node.attributes[name]
        if attribute.type == ir.AttributeType.STRING:
            value = attribute.as_string()
            if (since := NEW_VALUES.get((node.op_type, name), {}).get(value, 0)) > opset:
                raise OpsetError(node, f"{node.op_type} with {name}={value}", since)
        if name not in old.attributes:
            if not _is_default(attribute, new.attributes[name]):
                form = f"{node.op_type} with {name}={attribute.value}"
                raise OpsetError(node, form, _first_opset(node.op_type, opset, current, attribute=name))
            node.attributes.pop(name)
    if len(node.inputs) > old.max_input:
        form = f"{node.op_type} with {len(node.inputs)} inputs"
        raise OpsetError(node, form, _first_opset(node.op_type, opset, current, inputs=len(node.inputs)))


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None


def _first_opset(op_type: str, opset: int, current: int, *, attribute: str = "", inputs: int = 0) -> int:
    """Return the oldest opset above `opset` whose schema has the operator, the attribute and as many inputs."""
    for candidate in range(opset + 1, current):
        schema = _schema(op_type, candidate)
        has_attribute = schema is not None and (not attribute or attribute in schema.attributes)
        if schema is not None and has_attribute and schema.max_input >= inputs:
            return candidate
    return current


def _is_default(attribute: ir.Attr, schema: onnx.defs.OpSchema.Attribute) -> bool:
    """Whether an attribute has its default value; that of `dilations`, whose length is the rank, is all ones."""
    if attribute.name == "dilations":
        return all(number == 1 for number in attribute.as_ints())
    if not schema.default_value.name:
        return False
    default = onnx.helper.get_attribute_value(schema.default_value)
    return bool(attribute.value == (default.decode() if isinstance(default, bytes) else default))
