"""Write an ONNX file one weight at a time.

protobuf holds the message, the buffer that it encodes into and the encoded bytes at once: three copies of all weights.
Here each large weight goes from the graph to the file. The bytes are those of protobuf: fields in the order of their
numbers, each message with its tag and length in front. Above protobuf's limit of 2 GB the large weights stand in a
second file, as ONNX's external data.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.onnx_proto import GraphProto, ModelProto, TensorProto
from edgevit.protobuf import encode_prefix

MAX_BYTES = 2**31 - 1  # of a protobuf message
_ALIGNMENT = 4096  # of external data: runtimes map it page by page


def write_model(skeleton: ir.Model, weights: Mapping[str, ir.TensorProtocol], path: Path) -> None:
    """Write `skeleton` with the data of `weights`, which it declares as external data, by name of the initializer.

    The file equals that of the complete model: `ir.to_proto(model).SerializeToString(deterministic=True)`.
    Raises ExportError above protobuf's limit of 2 GB.
    """
    proto = ir.to_proto(skeleton)
    initializers = [_initializer_parts(tensor, weights) for tensor in proto.graph.initializer]
    graph_head, graph_tail = _around(proto.graph, GraphProto.INITIALIZER)
    model_head, model_tail = _around(proto, ModelProto.GRAPH)
    size = len(graph_head) + len(graph_tail)
    for head, data, tail in initializers:
        length = len(head) + _nbytes(data) + len(tail)
        size += len(encode_prefix(GraphProto.INITIALIZER, length)) + length
    if size + len(model_head) + len(model_tail) > MAX_BYTES:
        raise ExportError(f"the model has {size / 1e9:.2f} GB and exceeds the 2 GB limit of an ONNX file")
    with path.open("wb") as file:
        file.write(model_head + encode_prefix(ModelProto.GRAPH, size) + graph_head)
        for head, data, tail in initializers:
            file.write(encode_prefix(GraphProto.INITIALIZER, len(head) + _nbytes(data) + len(tail)) + head)
            if data is not None:
                file.write(data.tobytes())
            file.write(tail)
        file.write(graph_tail + model_tail)


def write_with_data(
    skeleton: ir.Model, weights: Mapping[str, ir.TensorProtocol], path: Path, data: Path, *, location: str
) -> None:
    """Write `skeleton` to `path` and the data of `weights` to `data`, a file that the ONNX file calls `location`."""
    proto = ir.to_proto(skeleton)
    with data.open("wb") as file:
        for tensor in proto.graph.initializer:
            if tensor.name not in weights:
                continue
            weight = weights[tensor.name]
            file.seek(-file.tell() % _ALIGNMENT, io.SEEK_CUR)
            place = {"location": location, "offset": file.tell(), "length": weight.nbytes}
            file.write(weight.tobytes())
            tensor.ClearField("external_data")
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _initializer_parts(
    tensor: onnx.TensorProto, weights: Mapping[str, ir.TensorProtocol]
) -> tuple[bytes, ir.TensorProtocol | None, bytes]:
    """Return the encoded fields before the data, the data that is not encoded yet, and the fields behind it."""
    data = weights.get(tensor.name)
    if data is None:
        return tensor.SerializeToString(deterministic=True), None, b""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    head, tail = _around(tensor, TensorProto.RAW_DATA)
    return head + encode_prefix(TensorProto.RAW_DATA, data.nbytes), data, tail


def _nbytes(data: ir.TensorProtocol | None) -> int:
    return 0 if data is None else data.nbytes


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """Return the encoded fields before and behind the field `number`, which is left out."""
    return _encode_fields(message, lambda each: each < number), _encode_fields(message, lambda each: each > number)


def _encode_fields(message: Any, keep: Callable[[int], bool]) -> bytes:
    part = type(message)()
    part.CopyFrom(message)
    for descriptor, _ in part.ListFields():
        if not keep(descriptor.number):
            part.ClearField(descriptor.name)
    content: bytes = part.SerializeToString(deterministic=True)
    return content
