"""Check an external ONNX file for defects that would crash, hang or mislead its readers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx

MAX_TENSOR_SIZE = 2**40  # elements; no device holds a tensor as large
MAX_INLINED_NODES = 1_000_000
MAX_OPSET = 2**31 - 1  # onnx reads opsets as 32-bit integers
_VALUE_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_BITS: Mapping[int, int] = {
    onnx.TensorProto.FLOAT: 32, onnx.TensorProto.UINT8: 8, onnx.TensorProto.INT8: 8, onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16, onnx.TensorProto.INT32: 32, onnx.TensorProto.INT64: 64, onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.DOUBLE: 64, onnx.TensorProto.UINT32: 32, onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.BFLOAT16: 16, onnx.TensorProto.COMPLEX64: 64, onnx.TensorProto.COMPLEX128: 128,
}  # fmt: skip

_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)  # two values for each element

_FunctionKey = tuple[str, str]


def find_defect(model: onnx.ModelProto, folder: Path) -> str | None:
    """Describe the first defect of a model in one line; None if there is none.

    `folder` is the model's folder, in which its external data must lie.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    if defect := _opset_defect(model) or _function_defect(model, functions):
        return defect
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        if defect := _order_defect(nodes) or _attribute_defect(nodes, model.opset_import):
            return defect
    for graph in _graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
            if defect := _size_defect(value.name, dims):
                return defect
    for tensor in _tensors(model):
        if defect := _tensor_defect(tensor, folder):
            return defect
    return None


def _opset_defect(model: onnx.ModelProto) -> str | None:
    for entry in (*model.opset_import, *(each for function in model.functions for each in function.opset_import)):
        if not 0 <= entry.version <= MAX_OPSET:
            return f"it imports opset {entry.version} of the domain {entry.domain!r}, which does not exist"
    return None


def _attribute_defect(nodes: Iterable[onnx.NodeProto], opsets: Iterable[onnx.OperatorSetIdProto]) -> str | None:
    """Describe the first attribute that has another type than the operator's schema says."""
    versions = {entry.domain: entry.version for entry in opsets}
    for node in nodes:
        try:
            schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:  # an operator of another library, or of a newer ONNX
            continue
        for attribute in node.attribute:
            known = schema.attributes.get(attribute.name)
            if known is not None and known.type.value != attribute.type:  # type: ignore[attr-defined]  # an enum
                return f"attribute {attribute.name!r} of {node.op_type} {node.name!r} has another type than in ONNX"
    return None


# Functions


def _function_defect(model: onnx.ModelProto, functions: Mapping[_FunctionKey, onnx.FunctionProto]) -> str | None:
    calls = {key: Counter(_calls(function.node, functions)) for key, function in functions.items()}
    sizes: dict[_FunctionKey, int] = {}
    pending: dict[_FunctionKey, Counter[_FunctionKey]] = dict(calls)
    while pending:  # functions that call only functions of known size come first
        ready = [key for key, callees in pending.items() if callees.keys() <= sizes.keys()]
        if not ready:
            return f"the function {next(iter(pending))[1]} calls itself, directly or through others"
        for key in ready:
            sizes[key] = len(functions[key].node) + sum(sizes[callee] * n for callee, n in pending.pop(key).items())
    total = sum(sizes[key] for key in _calls(model.graph.node, functions))
    if total > MAX_INLINED_NODES:
        return f"its functions expand to {total} nodes, more than {MAX_INLINED_NODES}"
    for nodes in (model.graph.node, *(function.node for function in functions.values())):
        for node in _all_nodes(nodes):
            called = functions.get((node.domain, node.op_type))
            if called is not None and len(node.input) > len(called.input):
                return f"a call of {called.name} has {len(node.input)} inputs instead of {len(called.input)}"
            if called is not None and len(node.output) > len(called.output):
                return f"a call of {called.name} has {len(node.output)} outputs instead of {len(called.output)}"
    return None


def _calls(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[_FunctionKey, onnx.FunctionProto]
) -> Iterator[_FunctionKey]:
    return ((node.domain, node.op_type) for node in _all_nodes(nodes) if (node.domain, node.op_type) in functions)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Iterate over nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _all_nodes(graph.node)


# Order of nodes


def _order_defect(nodes: Iterable[onnx.NodeProto]) -> str | None:
    """Describe a cycle, or a value that two nodes produce."""
    ordered = list(nodes)
    producers: dict[str, int] = {}
    for index, node in enumerate(ordered):
        for name in node.output:
            if name and name in producers:
                return f"two nodes produce {name!r}"
            producers[name] = index
    producers.pop("", None)
    consumers: dict[int, set[int]] = {}
    sources: list[int] = []
    for index, node in enumerate(ordered):
        reads = {producers[name] for inner in _all_nodes([node]) for name in inner.input if name in producers}
        sources.append(len(reads))
        for source in reads:
            consumers.setdefault(source, set()).add(index)
    ready = [index for index, count in enumerate(sources) if not count]
    done = 0
    while ready:
        done += 1
        for consumer in consumers.get(ready.pop(), ()):
            sources[consumer] -= 1
            if not sources[consumer]:
                ready.append(consumer)
    if done < len(ordered):
        node = next(ordered[index] for index, count in enumerate(sources) if count)
        return f"{node.name or node.op_type} depends on its own output"
    return None


# Tensors


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield model.graph
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _all_nodes(nodes):
            for attribute in node.attribute:
                yield from (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _all_nodes(nodes):
            for attribute in node.attribute:
                yield from (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors)


def _size_defect(name: str, dims: Iterable[int]) -> str | None:
    shape = tuple(dims)
    if any(dim < 0 for dim in shape) or math.prod(shape) > MAX_TENSOR_SIZE:
        return f"{name!r} has the shape {shape}, which no device can hold"
    return None


def _tensor_defect(tensor: onnx.TensorProto, folder: Path) -> str | None:
    name = tensor.name or "a constant"
    if defect := _size_defect(name, tensor.dims):
        return defect
    bits = _BITS.get(tensor.data_type)
    size_bytes = None if bits is None else math.prod(tensor.dims) * bits // 8
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _external_defect(tensor, size_bytes, folder)
    if tensor.HasField("raw_data") and size_bytes is not None and len(tensor.raw_data) != size_bytes:
        return f"{name!r} holds {len(tensor.raw_data)} bytes, but its shape {tuple(tensor.dims)} needs {size_bytes}"
    return _value_defect(tensor, name)


def _value_defect(tensor: onnx.TensorProto, name: str) -> str | None:
    """Describe values of another type or number than the tensor declares."""
    if tensor.data_type not in onnx.TensorProto.DataType.values() or not tensor.data_type:
        return f"{name!r} has the unknown element type {tensor.data_type}"
    if tensor.HasField("raw_data"):
        return None
    expected = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if others := [field for field in _VALUE_FIELDS if getattr(tensor, field) and field != expected]:
        return f"{name!r} keeps values in {others[0]}, but its type needs {expected}"
    count = len(getattr(tensor, expected)) // (2 if tensor.data_type in _COMPLEX else 1)
    if tensor.data_type in (*_BITS, onnx.TensorProto.STRING) and count != math.prod(tensor.dims):
        return f"{name!r} holds {count} values, but its shape {tuple(tensor.dims)} needs {math.prod(tensor.dims)}"
    return None


def _external_defect(tensor: onnx.TensorProto, size_bytes: int | None, folder: Path) -> str | None:
    """Describe external data that is missing, lies outside the model's folder or ends before the tensor does."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = folder / entries.get("location", "")
    if not path.is_file():
        return f"the file of weight {tensor.name!r} is missing ({path})"
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        return f"the file of weight {tensor.name!r} is a link or lies outside the model's folder ({path})"
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or size_bytes or 0)
    except ValueError:
        return f"the offset or length of weight {tensor.name!r} is not a number"
    if offset < 0 or length < 0 or offset + max(length, size_bytes or 0) > path.stat().st_size:
        return f"weight {tensor.name!r} ends after the end of its file ({path})"
    return None
