"""Serialize, check or send a graph without copies of its large weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export import onnx_writer
from edgevit.export.ir_helpers import remove_unused
from edgevit.files import replacing, weights_file
from edgevit.types import Array

Weights: TypeAlias = Mapping[str, ir.TensorProtocol]

MAX_SKELETON_BYTES = 1 << 26  # of an ONNX file without its large weights
MIN_ELEMENTS = 4096  # of a large weight: no shape, axis or scale has more
# Types of weights that a runtime takes from memory.
_SHAREABLE = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.INT32, ir.DataType.INT64,
})  # fmt: skip
_ENCODED = (ir.StringTensor, ir.TensorProtoTensor)  # written as they are


def detach_weights(model: ir.Model) -> tuple[ir.Model, Weights]:
    """Return a copy of the model with its large weights as inputs, and the weights by name."""
    copy = model.clone()
    weights = _large_weights(copy)
    for name in weights:
        value = copy.graph.initializers.pop(name)
        value.const_value = None
        copy.graph.inputs.append(value)
    return copy, weights


def attach_weights(model: ir.Model, weights: Weights) -> None:
    """Turn the inputs that `detach_weights` made back into weights, in place; unused ones are removed."""
    inputs = model.graph.inputs
    for value in [value for value in inputs if value.name in weights]:
        inputs.remove(value)
        value.const_value = weights[str(value.name)]
        model.graph.register_initializer(value)
    remove_unused(model)


def serialize_without_weights(model: ir.Model) -> tuple[bytes, dict[str, Array]]:
    """Return the content of an ONNX file that declares its large weights as external data, and these by name.

    Contiguous arrays share memory with the model. A runtime that takes weights from memory reads the pair without a
    copy in protobuf, and without its limit of 2 GB.
    """
    copy, weights = _declare_external(model, lambda tensor: tensor.dtype in _SHAREABLE)
    content: bytes = ir.to_proto(copy).SerializeToString(deterministic=True)
    # ONNX Runtime refuses to share the memory of an array that is not contiguous.
    return content, {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in weights.items()}


def save_model(model: ir.Model, path: Path) -> None:
    """Write an ONNX file without copies of its large weights, above 2 GB with a second file for them.

    Both replace older ones, as a whole. Raises OSError if that fails.
    """
    copy, weights = _declare_external(model, lambda tensor: not isinstance(tensor, _ENCODED))
    fits = sum(tensor.nbytes for tensor in weights.values()) <= onnx_writer.MAX_BYTES - MAX_SKELETON_BYTES
    with replacing(path) as part:
        if fits:
            onnx_writer.write_model(copy, weights, part)
            return
        with replacing(weights_file(path)) as data:
            onnx_writer.write_with_data(copy, weights, part, data, location=weights_file(path).name)


def load_small_weights(model: ir.Model) -> None:
    """Read all external tensors into memory but for large weights of the main graph, which stay on the disk."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            large = graph is model.graph and value.const_value is not None and value.const_value.size > MIN_ELEMENTS
            if not large and isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes.add(ir.AttrTensor(attribute.name, _in_memory(attribute.value)))


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def _declare_external(model: ir.Model, applies: Callable[[ir.TensorProtocol], bool]) -> tuple[ir.Model, Weights]:
    """Return a copy of the model that declares large weights as external data, and these weights by name."""
    copy = model.clone()
    weights = {name: tensor for name, tensor in _large_weights(copy).items() if applies(tensor)}
    for name, tensor in weights.items():
        external = ir.ExternalTensor(
            "weights",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            doc_string=tensor.doc_string,
        )
        external.metadata_props.update(tensor.metadata_props)
        copy.graph.initializers[name].const_value = external
    return copy, weights


def _large_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > MIN_ELEMENTS
    }
