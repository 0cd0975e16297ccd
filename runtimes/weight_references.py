"""Let a runtime read the weights of an ONNX file from the file itself instead of from protobuf's copies.

The small graph next to the file declares each large weight as external data: a place in the file. A runtime that maps
external data into memory then holds no copy of it, and the system can drop the pages at any time.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from edgevit.onnx_proto import DataLocation, DataType, GraphProto, ModelProto, StringStringEntryProto, TensorProto
from edgevit.protobuf import Buffer, Field, encode_bytes, encode_number, fields, read_number

MIN_BYTES = 65_536  # of a weight that is left in the file; a mapping of its own costs more than a smaller copy
_WHOLE_BYTES = frozenset(DataType)  # elements of other types may be packed


def write_references(model: Path, target: Path) -> bool:
    """Write to `target` the ONNX file `model` with references to its large weights, and link the file next to it.

    Returns False, and writes nothing, if the file has no large weights or cannot be read this way.
    """
    linked = target.with_suffix(".weights")
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            small = _model(content, linked.name)
    except ValueError:  # empty or damaged, which the runtime reports
        return False
    if model.stat().st_size - len(small) < MIN_BYTES:
        return False
    try:
        linked.hardlink_to(model)  # OpenVINO follows no symbolic links out of the folder
    except OSError:  # another file system, or one without links
        return False
    target.write_bytes(small)
    return True


def _model(content: Buffer, location: str) -> bytes:
    parts = []
    for field in fields(content, 0, len(content)):
        if field.number == ModelProto.GRAPH:
            parts.append(encode_bytes(ModelProto.GRAPH, _graph(content, field, location)))
        else:
            parts.append(content[field.start : field.end])
    return b"".join(parts)


def _graph(content: Buffer, graph: Field, location: str) -> bytes:
    parts = []
    for field in fields(content, graph.value, graph.end):
        if field.number == GraphProto.INITIALIZER and field.end - field.value >= MIN_BYTES:
            parts.append(encode_bytes(GraphProto.INITIALIZER, _tensor(content, field, location)))
        else:
            parts.append(content[field.start : field.end])
    return b"".join(parts)


def _tensor(content: Buffer, tensor: Field, location: str) -> bytes:
    """Return a tensor with a reference to its data, or as it is if the data is not stored as raw bytes."""
    found = list(fields(content, tensor.value, tensor.end))
    data = next((field for field in found if field.number == TensorProto.RAW_DATA), None)
    kind = next((read_number(content, field) for field in found if field.number == TensorProto.DATA_TYPE), 0)
    if data is None or data.end - data.value < MIN_BYTES or kind not in _WHOLE_BYTES:
        return content[tensor.value : tensor.end]
    kept = b"".join(content[field.start : field.end] for field in found if field.number != TensorProto.RAW_DATA)
    place = {"location": location, "offset": str(data.value), "length": str(data.end - data.value)}
    entries = b"".join(encode_bytes(TensorProto.EXTERNAL_DATA, _entry(key, value)) for key, value in place.items())
    return kept + entries + encode_number(TensorProto.DATA_LOCATION, DataLocation.EXTERNAL)


def _entry(key: str, value: str) -> bytes:
    first = encode_bytes(StringStringEntryProto.KEY, key.encode())
    return first + encode_bytes(StringStringEntryProto.VALUE, value.encode())
