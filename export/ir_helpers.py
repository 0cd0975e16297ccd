"""Helpers for onnx_ir graphs: constants, consumers, inserting nodes, replacing values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import UsageError, did_you_mean
from edgevit.node_names import is_in_modules, module_of_name
from edgevit.types import Array

# Permutations of a Transpose.
NCHW_TO_NHWC, NHWC_TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def module_of(node: ir.Node) -> str:
    """Return the dotted path of the PyTorch module that a node came from; "" if unknown."""
    return module_of_name(node.name or "")


def require_modules(model: ir.Model, modules: Iterable[str]) -> None:
    """Raise UsageError if a module has no node in the graph."""
    names = [str(node.name) for node in model.graph.all_nodes()]
    for module in modules:
        if not any(is_in_modules(name, (module,)) for name in names):
            known = sorted({path for name in names if (path := module_of_name(name))})
            raise UsageError(f"no operator of the graph belongs to a module {module!r}.{did_you_mean(module, known)}")


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of an initializer or of a Constant node's output; None for any other value."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def required_input(node: ir.Node, index: int = 0) -> ir.Value:
    """Return an input that the node cannot do without."""
    value = node.inputs[index]
    assert value is not None
    return value


def producers_of(node: ir.Node) -> set[ir.Node]:
    """Return the nodes that compute the inputs of a node."""
    producers = (value.producer() for value in node.inputs if value is not None)
    return {producer for producer in producers if producer is not None}


def readers_of(node: ir.Node) -> set[ir.Node]:
    """Return the nodes that read the outputs of a node."""
    return {use.node for value in node.outputs for use in value.uses()}


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the single node that reads `value`; None if several or none do, or if it is a graph output."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def has_constant_weights(layer: ir.Node) -> bool:
    """Whether the weights of a Conv or Gemm are constants, and its bias too if it has one."""
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    return constant(layer.inputs[1]) is not None and (bias is None or constant(bias) is not None)


def is_plain_gemm(node: ir.Node) -> bool:
    """Whether a node is a Gemm that neither scales its terms nor transposes its input."""
    if node.op_type != "Gemm":
        return False
    factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    return factors == (1.0, 1.0) and not node.attributes.get_int("transA", 0)


def is_pointwise(node: ir.Node | None) -> bool:
    """Whether a node is a 1x1 convolution of stride 1, without padding and groups, with constant weights."""
    if node is None or node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.shape[2:] != (1, 1) or not has_constant_weights(node):
        return False
    strides = node.attributes.get_ints("strides", [1])
    return not any(node.attributes.get_ints("pads", [0])) and all(stride == 1 for stride in strides)


def is_global_mean(node: ir.Node) -> bool:
    """Whether the node averages an (N, C, H, W) tensor over H and W."""
    if node.op_type == "GlobalAveragePool":
        return True
    axes = constant(node.inputs[1]) if node.op_type == "ReduceMean" and len(node.inputs) > 1 else None
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0
    return axes is not None and rank == 4 and sorted(np.asarray(axes) % rank) == [2, 3]


def is_over_last_axis(softmax: ir.Node) -> bool:
    return softmax.attributes.get_int("axis", -1) in (-1, len(softmax.outputs[0].shape or ()) - 1)


def sums_to_one(value: ir.Value | None) -> bool:
    """Whether each row of a value is the output of a softmax."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Softmax" and is_over_last_axis(node)


def only_softmax_reads(value: ir.Value) -> bool:
    """Whether a Softmax over the last axis alone reads a value: it ignores an offset of a whole row."""
    reader = only_consumer(value)
    return reader is not None and reader.op_type == "Softmax" and is_over_last_axis(reader)


def sizes_of_image(value: ir.Value | None) -> tuple[int, ...]:
    """Return the sizes of all axes but that of the batch; () if one is unknown."""
    dims = tuple(value.shape or ()) if value is not None else ()
    sizes = tuple(dim for dim in dims[1:] if isinstance(dim, int))
    return sizes if len(sizes) == len(dims) - 1 else ()


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer that holds `array`; a number is appended to `name` if it is taken."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}_{number}", number + 1
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(np.asarray(array, order="C"), name=unique),
    )
    graph.register_initializer(value)
    return value


def int64_initializer(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    """Add an int64 initializer, such as a shape, axes or pads."""
    return initializer(graph, name, np.asarray(values, np.int64))


def copy_shape_and_type(value: ir.Value, source: ir.Value) -> None:
    """Give `value` the shape and type of `source`."""
    value.shape = source.shape
    if source.type is not None:
        value.type = source.type


def numpy_dtype(value: ir.Value | None) -> np.dtype[Any]:
    """Return the dtype of a value's arrays; float32 if it is unknown."""
    return np.dtype(np.float32) if value is None or value.dtype is None else value.dtype.numpy()


def static_size(value: ir.Value | None, axis: int) -> int | None:
    """Return the length of an axis; None if it is dynamic or unknown."""
    if value is None or value.shape is None or not len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def insert(node: ir.Node, *, before: ir.Node, graph: ir.Graph, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    """Insert `node` before another; give its output the type of `like` and the shape, and return it."""
    graph.insert_before(before, node)
    output = node.outputs[0]
    copy_shape_and_type(output, like)
    output.shape = shape
    return output


def insert_row(value: ir.Value, axis: int, index: int, *, before: ir.Node, graph: ir.Graph, name: str) -> ir.Value:
    """Insert a Gather of one row of an axis, which keeps the axis; return its output."""
    assert value.shape is not None
    indices = int64_initializer(graph, f"{name}.index", [index])
    node = ir.node("Gather", [value, indices], {"axis": axis}, name=name)
    return insert(node, before=before, graph=graph, like=value, shape=with_one_row(value.shape, axis))


def insert_slice(
    value: ir.Value,
    ranges: Mapping[int, tuple[int, int]],
    *,
    step: int = 1,
    before: ir.Node,
    graph: ir.Graph,
    name: str,
) -> ir.Value:
    """Insert a Slice from the start to the end that each axis has in `ranges`; return its output."""
    starts, ends = zip(*ranges.values(), strict=True)
    parameters = {"starts": starts, "ends": ends, "axes": tuple(ranges)}
    if step != 1:
        parameters["steps"] = (step,) * len(ranges)
    inputs = [int64_initializer(graph, f"{name}.{key}", list(numbers)) for key, numbers in parameters.items()]
    shape = None if value.shape is None else _sliced(value.shape, ranges, step)
    return insert(ir.node("Slice", [value, *inputs], name=name), before=before, graph=graph, like=value, shape=shape)


def _sliced(shape: ir.Shape, ranges: Mapping[int, tuple[int, int]], step: int) -> ir.Shape:
    sizes: list[int | ir.SymbolicDim | None] = list(shape)
    for axis, (start, end) in ranges.items():
        size = sizes[axis]
        sizes[axis] = len(range(size)[start:end:step]) if isinstance(size, int) else None
    return ir.Shape(sizes)


def insert_split(
    value: ir.Value, sizes: Sequence[int], *, axis: int, before: ir.Node, graph: ir.Graph, name: str
) -> tuple[ir.Value, ...]:
    """Insert a Split of an axis into parts of the sizes before a node; return the parts."""
    assert value.shape is not None
    lengths = int64_initializer(graph, f"{name}.sizes", list(sizes))
    split = ir.node("Split", [value, lengths], {"axis": axis}, num_outputs=len(sizes), name=name)
    graph.insert_before(before, split)
    at = axis % len(value.shape)
    for part, size in zip(split.outputs, sizes, strict=True):
        part.shape, part.type = ir.Shape([*value.shape[:at], size, *value.shape[at + 1 :]]), value.type
    return tuple(split.outputs)


def with_one_row(shape: ir.Shape, axis: int) -> ir.Shape:
    """Return a shape whose axis has the length 1."""
    return ir.Shape([*shape[:axis], 1, *shape[axis + 1 :]])


def swap_last_axes(value: ir.Value | None, *, before: ir.Node, graph: ir.Graph, name: str | None = None) -> ir.Value:
    """Insert a Transpose of the last two axes of `value` before a node; return its output."""
    assert value is not None and value.shape is not None
    *leading, rows, columns = range(len(value.shape))
    node = ir.node("Transpose", [value], {"perm": [*leading, columns, rows]}, name=name)
    return insert(node, before=before, graph=graph, like=value, shape=with_swapped_axes(value))


def swaps_last_axes(node: ir.Node | None) -> bool:
    """Whether a node is a Transpose of the last two axes of its input."""
    if node is None or node.op_type != "Transpose":
        return False
    perm = list(node.attributes.get_ints("perm", []))
    rank = len(perm)
    return rank > 1 and perm == [*range(rank - 2), rank - 1, rank - 2]


def with_swapped_axes(value: ir.Value) -> ir.Shape:
    """Return the shape of a value whose last two axes are swapped."""
    assert value.shape is not None
    *leading, rows, columns = value.shape
    return ir.Shape([*leading, columns, rows])


class NodeInserter:
    """Inserts elementwise nodes before a node that they replace, each named `<node>_<operator>`."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        self._node, self._graph = node, graph

    def __call__(self, op_type: str, *inputs: ir.Value | None) -> ir.Value:
        """Insert a node whose output has the shape and type of the replaced node's; return its output."""
        new, output = ir.node(op_type, inputs, name=f"{self._node.name}_{op_type}"), self._node.outputs[0]
        return insert(new, before=self._node, graph=self._graph, like=output, shape=output.shape)

    def number(self, name: str, value: float) -> ir.Value:
        """Add a scalar initializer of the replaced node's type."""
        number = np.asarray(value, numpy_dtype(self._node.outputs[0]))
        return initializer(self._graph, f"{self._node.name}.{name}", number)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Replace `old` by `new` in all consumers and graph outputs; a graph output keeps its name."""
    copy_shape_and_type(new, old)
    if old.is_graph_output():
        old.name, new.name = f"{old.name}_replaced", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def replace_by_split(
    parts: Sequence[ir.Value], whole: ir.Value, sizes: ir.Value | None, *, axis: int, before: ir.Node, graph: ir.Graph
) -> ir.Node:
    """Insert a Split of `whole` before a node, whose outputs replace `parts`; return it."""
    name = f"{before.name}_merged_Split"
    split = ir.node("Split", [whole, sizes], {"axis": axis}, num_outputs=len(parts), name=name)
    graph.insert_before(before, split)
    for old, new in zip(parts, split.outputs, strict=True):
        replace_value(old, new)
    return split


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers whose values are not read."""
    common_passes.RemoveUnusedNodesPass()(model)


def eliminate_identities(model: ir.Model) -> None:
    """Apply onnx_ir's pass, except to an Identity by which a branch returns a value of the graph around it.

    Without it the branch has an output that none of its nodes produces, which is not valid ONNX.
    """
    kept = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "Identity"
        and node.outputs[0].is_graph_output()
        and node.inputs[0] is not None
        and node.inputs[0].graph is not node.graph
    ]
    for node in kept:
        node.op_type = "KeptIdentity"  # which the pass does not know
    common_passes.IdentityEliminationPass()(model)
    for node in kept:
        node.op_type = "Identity"
