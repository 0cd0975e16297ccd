"""Names of the nodes of an ONNX file by the tensors that they compute, read without the onnx package.

Runtimes name a layer that they made after its output, while edgevit's names of nodes hold the PyTorch module.
Field numbers follow onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GRAPH, _NODE, _OUTPUT, _NAME = 7, 1, 2, 3  # fields of ModelProto, GraphProto and NodeProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


def node_names(path: Path) -> dict[str, str]:
    """Return the node names by the names of their outputs; empty for a file that is missing or no ONNX model."""
    try:
        content = memoryview(path.read_bytes())
        nodes = [node for graph in _blocks(content, _GRAPH) for node in _blocks(graph, _NODE)]
        return {
            bytes(output).decode(): bytes(name).decode()
            for node in nodes
            for name in _blocks(node, _NAME)
            for output in _blocks(node, _OUTPUT)
        }
    except (OSError, ValueError, IndexError):
        return {}


def _blocks(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the contents of a field of a message. Raises ValueError or IndexError if it is damaged."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("a field ends after its message")
            if key >> 3 == wanted:
                yield message[position : position + size]
            position += size
        elif kind in _FIXED_BYTES:
            position += _FIXED_BYTES[kind]
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    value, shift = 0, 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
