"""OnnxGraph: an ONNX model with its interface and pass history."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError, UsageError
from edgevit.export.garbage import rare_collection
from edgevit.export.validate import find_defect
from edgevit.export.weights import load_small_weights, save_model, serialize_without_weights
from edgevit.files import first_line, os_reason
from edgevit.types import Dim, TensorSpec
from edgevit.untrusted import read_limited

_MAX_FILE_BYTES = 1 << 31  # limit of protobuf
BATCH = "batch"  # name of the dynamic axis
GROUP_NORM_OPSET = 21  # the first whose GroupNormalization has scale and bias per channel
CAPTURE_OPSET = GROUP_NORM_OPSET


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRecord:
    """One pass that was applied to a graph: node counts before and after, and the time it took."""

    name: str
    nodes_before: int
    nodes_after: int
    elapsed_s: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """An ONNX model and the passes that were applied to it.

    Immutable: `apply` returns a new graph, which shares the weights.
    """

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
        """Number of nodes per operator; operators of other domains are named `domain::operator`."""
        return Counter(
            f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in self.model.graph.all_nodes()
        )

    @property
    def node_count(self) -> int:
        return self.operators.total()

    def apply(self, name: str, rewrite: Callable[[ir.Model], object]) -> OnnxGraph:
        """Apply a pass, which changes a copy of the model in place, and record it under `name`."""
        return self.apply_all([(name, rewrite)])

    def apply_all(self, rewrites: Sequence[tuple[str, Callable[[ir.Model], object]]]) -> OnnxGraph:
        """Apply passes one after another to one copy of the model, and record each under its name.

        A copy for each would take 40 % of their time. Returns this graph if there are none.
        """
        if not rewrites:
            return self
        with rare_collection():
            start = time.perf_counter()
            graph, model = self, self.model.clone()
            for name, rewrite in rewrites:
                nodes_before = graph.node_count if graph is self else graph.history[-1].nodes_after
                rewrite(model)
                common_passes.NameFixPass()(model)  # nodes of a foreign file may have no names
                graph = graph._record(name, model, nodes_before=nodes_before, elapsed_s=time.perf_counter() - start)
                start = time.perf_counter()
        return graph

    def with_model(self, name: str, model: ir.Model, *, elapsed_s: float, note: str = "") -> OnnxGraph:
        """Replace the model and record the step under `name`."""
        return self._record(name, model, nodes_before=self.node_count, elapsed_s=elapsed_s, note=note)

    def _record(self, name: str, model: ir.Model, *, nodes_before: int, elapsed_s: float, note: str = "") -> OnnxGraph:
        after = OnnxGraph(model)
        record = PassRecord(
            name=name, nodes_before=nodes_before, nodes_after=after.node_count, elapsed_s=elapsed_s, note=note
        )
        return replace(after, history=(*self.history, record))

    def to_bytes(self) -> bytes:
        """Serialize to the content of an ONNX file. Raises ExportError above protobuf's limit of 2 GB."""
        try:
            content: bytes = ir.to_proto(self.model).SerializeToString(deterministic=True)
            return content
        except ValueError as error:
            raise ExportError(f"the model exceeds the 2 GB limit of an ONNX file: {first_line(error)}") from error

    @property
    def sha256(self) -> str:
        """The SHA-256 of the graph and its weights: equal for each capture of the same model."""
        content, weights = serialize_without_weights(self.model)
        digest = hashlib.sha256(content)
        for name, array in weights.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write an ONNX file, above 2 GB with a second file for the weights (`weights_file`)."""
        save_model(self.model, path)

    @classmethod
    def from_bytes(cls, content: bytes) -> OnnxGraph:
        return cls(ir.from_proto(onnx.load_model_from_string(content)))

    @classmethod
    def load(cls, path: Path) -> OnnxGraph:
        """Load an ONNX file written by edgevit. Raises ExportError if it is missing, damaged or not ONNX."""
        try:
            graph = cls.from_bytes(path.read_bytes())
            ir.external_data.set_base_dir(graph.model.graph, path.parent)
            return graph
        except OSError as error:
            raise ExportError(f"cannot read {path}: {os_reason(error)}") from error
        except Exception as error:  # protobuf raises its own DecodeError, onnx-ir several classes
            raise ExportError(f"{path} is not an ONNX model or is damaged: {first_line(error)}") from error

    @classmethod
    def read(cls, path: Path) -> OnnxGraph:
        """Load a user's ONNX file; external weights are read on first use.

        Raises UsageError if the file is missing, damaged, incomplete or not ONNX.
        """
        logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it logs and warns of defects that are reported here
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:  # before it is read into memory
                raise UsageError(f"{path} is larger than 2 GB, the limit of an ONNX file; store its weights beside it")
            proto = onnx.load_model_from_string(read_limited(path, limit_bytes=_MAX_FILE_BYTES))
            defect = find_defect(proto, path.parent)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = None if defect else cls(ir.from_proto(proto))
            if graph is not None:
                ir.external_data.set_base_dir(graph.model.graph, path.parent)
                load_small_weights(graph.model)
                graph.model.graph.sort()  # ONNX Runtime also takes files in another order; passes need this one
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(f"cannot read {path}: {os_reason(error)}; give an ONNX file or a bundle") from error
        except Exception as error:  # protobuf raises its own DecodeError, onnx-ir several classes
            reason = " ".join(str(error).split())
            raise UsageError(f"{path} is not an ONNX model or is damaged ({reason}); export it again") from error
        if graph is not None:
            defect = _structural_defect(graph.model)
        if graph is None or defect:
            raise UsageError(f"{path} is not a complete ONNX model: {defect}; export it again")
        return graph


def _structural_defect(model: ir.Model) -> str | None:
    """Describe the first thing that a model lacks; None if it is complete. An empty file parses as an empty model."""
    if not model.graph.outputs:
        return "it contains no graph"
    for output in model.graph.outputs:
        if output.producer() is None and not output.is_graph_input() and not output.is_initializer():
            return f"no node produces its output {output.name!r}"
    if "" not in model.opset_imports and any(not node.domain for node in model.graph.all_nodes()):
        return "it imports no opset"
    for node in model.graph.all_nodes():
        name = node.name or node.op_type
        if (required := _required_inputs(node, model.opset_imports.get("", 0))) > len(node.inputs):
            return f"{name} has {len(node.inputs)} inputs, but {node.op_type} requires {required}"
        for value in node.inputs:
            if value is not None and value.graph is None and value.producer() is None:
                return f"{name} reads {value.name!r}, which no node produces"
    return None


def _required_inputs(node: ir.Node, opset: int) -> int:
    """Number of required inputs of a node; 0 if ONNX does not define its operator."""
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
