"""The bytes of an ONNX file with one matrix product, written without the onnx package, which devices lack.

Field numbers follow onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.protobuf import encode_bytes, encode_number
from edgevit.types import Array

_IR_VERSION, _OPSET = 8, 17
_ONNX_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}


def matmul_model(rows: int, weight: Array, *, input_dtype: str, output_dtype: str) -> bytes:
    """Return a model that multiplies `x`, (rows, K), by the constant `weight`, (K, N), into `y`."""
    inner, columns = weight.shape
    operator = "MatMul" if output_dtype == "float32" else "MatMulInteger"
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, operator)
    graph = (
        encode_bytes(1, node)
        + _text(2, "matmul")
        + encode_bytes(5, _tensor("w", weight))
        + encode_bytes(11, _value("x", input_dtype, (rows, inner)))
        + encode_bytes(12, _value("y", output_dtype, (rows, columns)))
    )
    return encode_number(1, _IR_VERSION) + encode_bytes(7, graph) + encode_bytes(8, encode_number(2, _OPSET))


def _tensor(name: str, array: Array) -> bytes:
    """A TensorProto."""
    dims = b"".join(encode_number(1, size) for size in array.shape)
    return dims + encode_number(2, _ONNX_TYPES[array.dtype.name]) + _text(8, name) + encode_bytes(9, array.tobytes())


def _value(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto."""
    dims = b"".join(encode_bytes(1, encode_number(1, size)) for size in shape)
    return _text(1, name) + encode_bytes(
        2, encode_bytes(1, encode_number(1, _ONNX_TYPES[dtype]) + encode_bytes(2, dims))
    )


def _text(field: int, value: str) -> bytes:
    return encode_bytes(field, value.encode())
