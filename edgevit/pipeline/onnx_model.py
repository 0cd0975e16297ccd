"""OnnxModel: an ONNX file as the model of an export; PyTorch is not needed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgevit.arrays import is_undefined
from edgevit.errors import ExportError, PrecisionError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.import_onnx import import_graph
from edgevit.files import file_sha256
from edgevit.images import Preprocessing
from edgevit.models.description import ModelDescription, ModelOrigin, for_photos, slug
from edgevit.models.reference_inputs import noise_inputs, photo_inputs, warn_of_single_values
from edgevit.models.repetition import differing_row
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeEngine
from edgevit.types import PHOTOS, Array, Precision, Reference, Run, TensorSpec

SUFFIX = ".onnx"
_PREFIX = "onnx:"  # of `ModelOrigin.source`
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
_INT8_ACTIVATIONS = frozenset({"QuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv"})
_LOW_PRECISION = _INT8_ACTIVATIONS | {"DequantizeLinear"}
_RANDOM = ("Random", "Bernoulli", "Multinomial")  # prefixes of operators that draw numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel(ModelDescription):
    """The graph of an ONNX file, as it is in the file, with a shape for each input."""

    path: Path
    graph: OnnxGraph
    specs: tuple[TensorSpec, ...]  # of the inputs, all with a shape
    has_dynamic_batch: bool  # whether the first axis of all inputs is open in the file

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.specs

    def with_batch(self, batch: int) -> OnnxModel:
        specs = tuple(replace(spec, shape=(batch, *spec.with_batch(1)[1:])) for spec in self.specs)
        if not self.has_dynamic_batch:
            _require_batch(self.path, self.specs, batch)
        return replace(self, specs=specs)

    @property
    def file_outputs(self) -> list[str]:
        """Names of the outputs."""
        return [str(value.name) for value in self.graph.model.graph.outputs]

    def imported(self, *, dynamic_batch: bool) -> OnnxGraph:
        """Return the graph in the opset of the passes. Raises UsageError if its batch cannot be dynamic."""
        if dynamic_batch and not self.has_dynamic_batch:
            raise UsageError(
                f"{self.path} has a fixed batch of {self.batch}; leave --dynamic-batch out, or export the file with a "
                "dynamic first axis"
            )
        shapes = {spec.name: spec.with_batch(1) for spec in self.specs}
        return import_graph(self.graph, shapes=shapes, dynamic_batch=dynamic_batch)


def is_onnx_file(name: str) -> bool:
    """Return whether a MODEL names an ONNX file."""
    return name.lower().endswith(SUFFIX)


def load_onnx_model(
    path: Path,
    *,
    img_size: int | tuple[int, int] | None = None,
    batch: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> OnnxModel:
    """Read an ONNX file as a model.

    `batch` is the size of a dynamic first axis, 1 if it is None; a fixed one is kept. `img_size` and `input_shapes`
    give the sizes of other dynamic axes. Raises UsageError if the file is not complete, or has no inputs, or its inputs
    have no size or no common batch.
    """
    graph = OnnxGraph.read(path)
    inputs = [value for value in graph.model.graph.inputs if value.name not in graph.model.graph.initializers]
    if not inputs:
        raise UsageError(f"{path} has no inputs, so that its outputs are constants; give a file that takes some")
    rows = 1 if batch is None else batch
    given = _shape_for_size(path, inputs, img_size, rows) if img_size is not None else input_shapes or {}
    if img_size is not None and input_shapes:
        raise UsageError("--img-size and --input-shape exclude each other; the shape includes the size")
    imported = import_graph(graph, shapes=given)
    specs = tuple(replace(spec, shape=spec.with_batch(rows)) for spec in imported.inputs)
    _require_batch(path, specs, batch)
    preprocessing = for_photos(Preprocessing(), specs)
    return OnnxModel(
        name=slug(path.stem),
        input_names=tuple(spec.name for spec in specs),
        preprocessing=preprocessing,
        preprocessing_source=None if preprocessing is None else "assumed",
        classes=None,
        origin=ModelOrigin(source=f"{_PREFIX}{path.name}", weights=path.name, weights_sha256=_sha256(path, graph)),
        path=path,
        graph=graph,
        specs=specs,
        has_dynamic_batch=all(value.shape is not None and not isinstance(value.shape[0], int) for value in inputs),
    )


def require_float32(model: OnnxModel, precision: Precision) -> None:
    """Raise an error if the file is in a lower precision than float32, from which `precision` cannot be made.

    In fp32, weights in fp16 or int8 are taken: they are computed in fp32. Activations in int8 are not (PrecisionError):
    engines would not run in fp32. A lower precision is made of float32 alone (UsageError).
    """
    operators = sorted(model.graph.operators.keys() & (_INT8_ACTIVATIONS if precision == "fp32" else _LOW_PRECISION))
    if precision == "fp32":
        if operators:
            raise PrecisionError(
                f"{model.path} has {operators[0]}, so that it runs in int8 and not in the requested fp32; give the "
                "fp32 file, or rewrite this one as it is with edgevit optimize"
            )
        return
    values = model.graph.model.graph.initializers.values()
    half = [value.name for value in values if value.dtype == ir.DataType.FLOAT16]
    if operators or half:
        found = operators[0] if operators else f"fp16 weights such as {half[0]}"
        raise UsageError(f"{model.path} is in a lower precision already (it has {found}); give the fp32 file")


def reference_outputs(
    model: OnnxModel, *, images: Path | None, strict: bool, threads: int | None
) -> tuple[Reference, ...]:
    """Run the file as it is in ONNX Runtime, without optimizations, row by row.

    Raises ExportError if it gives different outputs for the same input.
    """
    zeros = [np.zeros((1, *spec.with_batch(1)[1:]), spec.dtype) for spec in model.inputs]
    found = {PHOTOS: photo_inputs(model.preprocessing, images, strict=strict), "noise": noise_inputs(zeros)}
    warn_of_single_values(model.input_names, found["noise"])
    run = graph_evaluator(model.graph, threads=threads)
    references: list[Reference] = []
    for kind, arrays in found.items():
        if not arrays:
            continue
        named = dict(zip(model.input_names, arrays, strict=True))
        rows = [_outputs_of_row(model, run, named, row) for row in range(len(arrays[0]))]
        outputs = {name: np.concatenate([each[name] for each in rows]) for name in model.file_outputs}
        if not references:
            _require_same_again(model, run, named, outputs)
        references.append(Reference(kind=kind, inputs=named, outputs=outputs))
    return tuple(references)


def _outputs_of_row(model: OnnxModel, run: Run, inputs: Mapping[str, Array], row: int) -> dict[str, Array]:
    """Return the outputs of one row, (1, ...), of a batch that repeats it."""
    outputs = run({name: array[[row] * model.batch] for name, array in inputs.items()})
    return {name: outputs[name][:1] for name in model.file_outputs}


def _require_same_again(model: OnnxModel, run: Run, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Run rows again. Raises ExportError, with the node to blame, if the outputs differ."""
    count = len(next(iter(inputs.values())))
    if differing_row(lambda row: _outputs_of_row(model, run, inputs, row), outputs, rows=count) is not None:
        raise ExportError(
            f"{model.path} gives different outputs for the same input, so that no engine can be compared "
            f"with it: {_random_node(model.graph)}"
        )


def _random_node(graph: OnnxGraph) -> str:
    """Describe the first node that draws random numbers, and the remedy."""
    functions = graph.model.functions.values()
    nodes = itertools.chain(graph.model.graph.all_nodes(), *(function.all_nodes() for function in functions))
    for node in nodes:
        is_training = node.op_type == "Dropout" and len(node.inputs) > 2  # the third says so
        if node.op_type.startswith(_RANDOM) or is_training:
            return f"{node.op_type} draws {node.outputs[0].name!r} at random; export the model without it"
    return "it has no operator for random numbers; look for an operator that keeps a state"


def undefined_weights(graph: OnnxGraph) -> tuple[str, ...]:
    """Return the names of the initializers, besides scalars, that hold NaN or +inf."""
    values = graph.model.graph.initializers.values()
    tensors = {str(value.name): value.const_value for value in values if value.dtype in _FLOATS}
    return tuple(name for name, tensor in tensors.items() if tensor is not None and is_undefined(tensor.numpy()))


def original_engine(model: OnnxModel, *, threads: int | None) -> Engine:
    """Return the file in ONNX Runtime with its own optimizations, as it would be run without edgevit."""
    return OnnxRuntimeEngine(OnnxRuntime().load(), model.path, BuildOptions(threads=threads))


def _shape_for_size(
    path: Path, inputs: Sequence[ir.Value], img_size: int | tuple[int, int], batch: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of the one image input. Raises UsageError if its size is fixed, or there is no such input."""
    dims = [dim if isinstance(dim, int) else None for dim in inputs[0].shape or ()]
    if len(inputs) != 1 or len(dims) != 4:
        raise UsageError(f"--img-size is for one image input (N, C, H, W), which {path} lacks; use --input-shape")
    name, channels = str(inputs[0].name), dims[1]
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    if any(own not in (None, side) for own, side in zip(dims[2:], sides, strict=True)):
        raise UsageError(f"{path} takes images of {dims[2]} x {dims[3]} only; leave --img-size out")
    if channels is None:
        raise UsageError(f"input {name} of {path} has no number of channels; use --input-shape {name}=N,C,H,W")
    return {name: (dims[0] or batch, channels, *sides)}


def _require_batch(path: Path, specs: Sequence[TensorSpec], batch: int | None) -> None:
    """Raise UsageError unless all inputs begin with the same batch, and with the requested one."""
    sizes = {spec.shape[0] if spec.shape else None for spec in specs}
    if len(sizes) != 1 or None in sizes:
        shown = ", ".join(f"{spec.name}: {list(spec.shape)}" for spec in specs)
        raise UsageError(f"the inputs of {path} have no common batch ({shown}); every input needs it as its first axis")
    own = sizes.pop()
    if batch is not None and own != batch:
        raise UsageError(f"{path} has a fixed batch of {own}; leave --batch out, or export the file with a dynamic one")


def _sha256(path: Path, graph: OnnxGraph) -> str:
    """Return the hash of the file; of a file with external weights, the hash of the hashes of all its files."""
    others = sorted(set(_external_files(graph)))
    if not others:
        return file_sha256(path)
    return hashlib.sha256("".join(map(file_sha256, (path, *others))).encode()).hexdigest()


def _external_files(graph: OnnxGraph) -> Iterator[Path]:
    for value in graph.model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield Path(value.const_value.path)
