"""The bytes of an ONNX file with one matrix product, written without the onnx package, which devices lack.

Field numbers follow onnx.proto3 and the encoding of Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.types import Array

_VARINT, _BYTES = 0, 2  # wire types
_IR_VERSION, _OPSET = 8, 17
_ONNX_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}


def matmul_model(rows: int, weight: Array, *, input_dtype: str, output_dtype: str) -> bytes:
    """Return a model that multiplies `x`, (rows, K), by the constant `weight`, (K, N), into `y`."""
    inner, columns = weight.shape
    operator = "MatMul" if output_dtype == "float32" else "MatMulInteger"
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, operator)
    graph = (
        _block(1, node)
        + _text(2, "matmul")
        + _block(5, _tensor("w", weight))
        + _block(11, _value("x", input_dtype, (rows, inner)))
        + _block(12, _value("y", output_dtype, (rows, columns)))
    )
    return _number(1, _IR_VERSION) + _block(7, graph) + _block(8, _number(2, _OPSET))


def _tensor(name: str, array: Array) -> bytes:
    """A TensorProto."""
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, _ONNX_TYPES[array.dtype.name]) + _text(8, name) + _block(9, array.tobytes())


def _value(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto."""
    dims = b"".join(_block(1, _number(1, size)) for size in shape)
    return _text(1, name) + _block(2, _block(1, _number(1, _ONNX_TYPES[dtype]) + _block(2, dims)))


def _text(field: int, value: str) -> bytes:
    return _block(field, value.encode())


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte says that another follows."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
