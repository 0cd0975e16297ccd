"""The bytes of an ONNX file with one matrix product, written without the onnx package, which devices lack."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.onnx_proto import (
    DataType,
    DimensionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    TensorShapeProto,
    TensorTypeProto,
    TypeProto,
    ValueInfoProto,
)
from edgevit.protobuf import encode_bytes, encode_number
from edgevit.types import Array

_IR_VERSION, _OPSET = 8, 17
_ONNX_TYPES = {
    "float32": DataType.FLOAT,
    "uint8": DataType.UINT8,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
}


def matmul_model(rows: int, weight: Array, *, input_dtype: str, output_dtype: str) -> bytes:
    """Return a model that multiplies `x`, (rows, K), by the constant `weight`, (K, N), into `y`."""
    inner, columns = weight.shape
    operator = "MatMul" if output_dtype == "float32" else "MatMulInteger"
    inputs = _text(NodeProto.INPUT, "x") + _text(NodeProto.INPUT, "w")
    node = inputs + _text(NodeProto.OUTPUT, "y") + _text(NodeProto.OP_TYPE, operator)
    graph = (
        encode_bytes(GraphProto.NODE, node)
        + _text(GraphProto.NAME, "matmul")
        + encode_bytes(GraphProto.INITIALIZER, _tensor("w", weight))
        + encode_bytes(GraphProto.INPUT, _value("x", input_dtype, (rows, inner)))
        + encode_bytes(GraphProto.OUTPUT, _value("y", output_dtype, (rows, columns)))
    )
    return (
        encode_number(ModelProto.IR_VERSION, _IR_VERSION)
        + encode_bytes(ModelProto.GRAPH, graph)
        + encode_bytes(ModelProto.OPSET_IMPORT, encode_number(OperatorSetIdProto.VERSION, _OPSET))
    )


def _tensor(name: str, array: Array) -> bytes:
    """A TensorProto."""
    return (
        b"".join(encode_number(TensorProto.DIMS, size) for size in array.shape)
        + encode_number(TensorProto.DATA_TYPE, _ONNX_TYPES[array.dtype.name])
        + _text(TensorProto.NAME, name)
        + encode_bytes(TensorProto.RAW_DATA, array.tobytes())
    )


def _value(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto."""
    sizes = (encode_number(DimensionProto.DIM_VALUE, size) for size in shape)
    dims = b"".join(encode_bytes(TensorShapeProto.DIM, size) for size in sizes)
    element = encode_number(TensorTypeProto.ELEM_TYPE, _ONNX_TYPES[dtype])
    tensor = element + encode_bytes(TensorTypeProto.SHAPE, dims)
    kind = encode_bytes(TypeProto.TENSOR_TYPE, tensor)
    return _text(ValueInfoProto.NAME, name) + encode_bytes(ValueInfoProto.TYPE, kind)


def _text(field: int, value: str) -> bytes:
    return encode_bytes(field, value.encode())
