"""Serialize, check or send a graph without copies of its large weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import remove_unused
from edgevit.export.onnx_writer import write_model
from edgevit.types import Array

Weights: TypeAlias = Mapping[str, ir.TensorProtocol]

MIN_ELEMENTS = 4096  # of a large weight: no shape, axis or scale has more
# Types of weights that a runtime takes from memory.
_SHAREABLE = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.INT32, ir.DataType.INT64,
})  # fmt: skip
_STORED_ELSEWHERE = (ir.ExternalTensor, ir.StringTensor, ir.TensorProtoTensor)


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
    """Write an ONNX file without copies of its large weights. Raises ExportError above 2 GB, OSError if it fails."""
    copy, weights = _declare_external(model, lambda tensor: not isinstance(tensor, _STORED_ELSEWHERE))
    write_model(copy, weights, path)


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
