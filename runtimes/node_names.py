"""Names of the nodes of an ONNX file by the tensors that they compute, read without the onnx package.

Runtimes name a layer that they made after its output, while edgevit's names of nodes hold the PyTorch module.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgevit.onnx_proto import GraphProto, ModelProto, NodeProto
from edgevit.protobuf import Field, fields


def node_names(path: Path) -> dict[str, str]:
    """Return the node names by the names of their outputs; empty for a file that is missing or no ONNX model."""
    try:
        content = path.read_bytes()
        nodes = [
            node for graph in _of(content, ModelProto.GRAPH) for node in _of(content, GraphProto.NODE, within=graph)
        ]
        return {
            _text(content, output): _text(content, name)
            for node in nodes
            for name in _of(content, NodeProto.NAME, within=node)
            for output in _of(content, NodeProto.OUTPUT, within=node)
        }
    except (OSError, ValueError):
        return {}


def _of(content: bytes, number: int, *, within: Field | None = None) -> Iterator[Field]:
    """Return the fields of one number within a message, or within the whole content."""
    start, end = (0, len(content)) if within is None else (within.value, within.end)
    return (field for field in fields(content, start, end) if field.number == number)


def _text(content: bytes, field: Field) -> str:
    return content[field.value : field.end].decode()
