"""The graph that travels: an ONNX model with its interface and its history, and the few tools that passes share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError, UsageError
from edgevit.types import Array, Dim, TensorSpec

CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # how (N, C, H, W) is turned, and turned back
BATCH = "batch"  # the name of the dynamic axis, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRecord:
    """What one pass did: the operators before and after, and how long it took."""

    name: str
    nodes_before: int
    nodes_after: int
    elapsed_s: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """An ONNX model, and the passes that made it what it is. `apply` returns a new one; weights are shared."""

    model: ir.Model
    history: tuple[PassRecord, ...] = ()

    @property
    def opset(self) -> int:
        return self.model.opset_imports[""]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self.model.graph.outputs)

    @property
    def operators(self) -> Counter[str]:
        """How often each operator occurs; operators of other domains with their domain."""
        return Counter(
            f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in self.model.graph.all_nodes()
        )

    @property
    def node_count(self) -> int:
        return self.operators.total()

    def apply(self, name: str, rewrite: Callable[[ir.Model], object]) -> OnnxGraph:
        """The graph after `rewrite`, which changes the copy it is given in place."""
        start = time.perf_counter()
        model = self.model.clone()
        rewrite(model)
        common_passes.NameFixPass()(model)  # a file from elsewhere may have nodes without names
        return self.with_model(name, model, elapsed_s=time.perf_counter() - start)

    def with_model(self, name: str, model: ir.Model, *, elapsed_s: float, note: str = "") -> OnnxGraph:
        """The graph with another model in its place, recorded under `name`."""
        after = OnnxGraph(model)
        record = PassRecord(
            name=name,
            nodes_before=self.node_count,
            nodes_after=after.node_count,
            elapsed_s=elapsed_s,
            note=note,
        )
        return replace(after, history=(*self.history, record))

    def to_bytes(self) -> bytes:
        """The model as an ONNX file's content. Raises ExportError above protobuf's 2 GB."""
        try:
            content: bytes = ir.to_proto(self.model).SerializeToString(deterministic=True)
            return content
        except ValueError as error:
            raise ExportError(f"the model does not fit one ONNX file of 2 GB: {error}") from error

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> OnnxGraph:
        return cls(ir.from_proto(onnx.load_model_from_string(content)))

    @classmethod
    def load(cls, path: Path) -> OnnxGraph:
        """The ONNX file at `path`. Raises ExportError where it is missing, broken or not ONNX."""
        try:
            content = path.read_bytes()
            return cls.from_bytes(content)
        except OSError as error:
            raise ExportError(f"cannot read {path}: {error}") from error
        except Exception as error:  # protobuf raises its own DecodeError, onnx-ir several kinds
            raise ExportError(f"{path} is not an ONNX model or is damaged: {error}") from error

    @classmethod
    def read(cls, path: Path) -> OnnxGraph:
        """A user's ONNX file; weights that lie in files beside it are read when they are looked at.

        Raises UsageError where it is missing, broken, without a graph, or without a part of itself.
        """
        try:
            graph = cls(ir.load(path))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}; give an ONNX file or a bundle") from error
        except Exception as error:  # protobuf raises its own DecodeError, onnx-ir several kinds
            reason = " ".join(str(error).split())
            raise UsageError(f"{path} is not an ONNX model or is damaged ({reason}); export it again") from error
        if fault := _fault(graph.model):
            raise UsageError(f"{path} is not a whole ONNX model: {fault}; export it again")
        return graph


def _fault(model: ir.Model) -> str | None:
    """What a model lacks of itself; an empty file, for one, is a model with nothing in it."""
    if not model.graph.outputs:
        return "there is no graph in it"
    if "" not in model.opset_imports and any(not node.domain for node in model.graph.all_nodes()):
        return "it names no opset"
    for node in model.graph.all_nodes():
        if (least := _least_inputs(node, model.opset_imports.get("", 0))) > len(node.inputs):
            return f"{node.name or node.op_type} has {len(node.inputs)} inputs, and {node.op_type} takes {least}"
        for value in node.inputs:
            if value is not None and value.graph is None and value.producer() is None:
                return f"{node.name or node.op_type} reads {value.name!r}, which nothing makes"
    for weight in model.graph.initializers.values():
        if isinstance(weight.const_value, ir.ExternalTensor) and not Path(weight.const_value.path).is_file():
            return f"the weight {weight.name!r} is not where it says ({weight.const_value.path})"
    return None


def _least_inputs(node: ir.Node, opset: int) -> int:
    """How many inputs a node has to have; 0 where ONNX does not know its operator."""
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return 0
    try:
        return int(onnx.defs.get_schema(node.op_type, opset).min_input)
    except onnx.defs.SchemaError:  # not in this opset
        return 0


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise ExportError(f"the tensor {value.name} has no known shape or type")
    shape: list[Dim] = []
    for dim in value.shape:
        if isinstance(dim, int):
            shape.append(dim)
        elif str(dim) == BATCH or str(getattr(dim, "value", dim)) == BATCH:
            shape.append("batch")
        else:
            raise ExportError(f"{value.name} has the dynamic dimension {dim}; only the batch may be dynamic")
    return TensorSpec(str(value.name), value.dtype.numpy().name, tuple(shape))


# Tools for passes


def module_of(node: ir.Node) -> str:
    """The PyTorch module that a node came from, as a dotted path; "" where it is not known."""
    return (node.name or "").rpartition("/")[0]


def constant(value: ir.Value | None) -> Array | None:
    """The value as an array where it is an initializer or a Constant's output, else None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`; None where several do, none does, or it is an output of the graph."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def has_constant_weights(layer: ir.Node) -> bool:
    """Whether the weights of a convolution or a Gemm are constants, and the bias too where there is one."""
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    return constant(layer.inputs[1]) is not None and (bias is None or constant(bias) is not None)


def is_mean_over_pixels(node: ir.Node) -> bool:
    """Whether the node averages (N, C, H, W) over H and W."""
    if node.op_type == "GlobalAveragePool":
        return True
    axes = constant(node.inputs[1]) if node.op_type == "ReduceMean" and len(node.inputs) > 1 else None
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0
    return axes is not None and rank == 4 and sorted(np.asarray(axes) % rank) == [2, 3]


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer that holds `array`, under `name` made unique."""
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


def integers(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    """A new int64 initializer: a shape, axes, pads."""
    return initializer(graph, name, np.asarray(values, np.int64))


def describe(value: ir.Value, like: ir.Value) -> None:
    """Gives `value` the shape and the type of `like`."""
    value.shape = like.shape
    if like.type is not None:
        value.type = like.type


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Lets all readers of `old`, the graph's outputs included, read `new`; an output keeps its name."""
    describe(new, old)
    if old.is_graph_output():
        old.name, new.name = f"{old.name}_replaced", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove_unused(model: ir.Model) -> None:
    """Drops nodes and initializers that nothing reads any more."""
    common_passes.RemoveUnusedNodesPass()(model)
