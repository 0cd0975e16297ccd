"""ONNX Runtime on the CPU, and the ONNX file itself, which ONNX Runtime reads for us without touching it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.base import (
    Artifact,
    BuildOptions,
    Engine,
    ExecutedPrecision,
    Runtime,
    Shape,
    attention_multiply_adds,
    available_cores,
    by_precision,
    convolution_multiply_adds,
    product_multiply_adds,
)
from edgevit.tensors import Array, Dim, Precision, TensorSpec

PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntime(Runtime):
    """The CPU provider, on the graph as it was exported; ONNX Runtime optimises it for this machine as it loads."""

    fmt: ClassVar[str] = "ort"
    title: ClassVar[str] = "ONNX Runtime"
    module: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "ort"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    optimised: ClassVar[bool] = True

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """ONNX Runtime's artefact is the ONNX file: its optimised form would fit no other machine."""
        self.require_precision(options.precision)
        start = time.perf_counter()
        target = folder / "model.onnx"
        if model.resolve() != target.resolve():
            shutil.copyfile(model, target)
        self.open(target, options).close()  # a file that does not load is no artefact
        return Artifact(fmt=self.fmt, files=(target,), build_s=time.perf_counter() - start)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        return OnnxRuntimeEngine(self.load(), artifact, options, fmt=self.fmt, optimised=self.optimised)


class OnnxFile(OnnxRuntime):
    """The ONNX file, read node by node with no optimisation: what the file itself says, as a judge reads it."""

    fmt: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    precisions: ClassVar[tuple[Precision, ...]] = (
        "fp32",
        "fp16",
        "int8",
    )  # a file holds any; what runs it decides the rest
    optimised: ClassVar[bool] = False


class OnnxRuntimeEngine(Engine):
    """A session with the provider that was asked for, or none at all."""

    def __init__(
        self, ort: Any, model: Path | bytes, options: BuildOptions, *, fmt: str = "ort", optimised: bool = True
    ) -> None:
        settings = _settings(ort, optimised=optimised)
        settings.intra_op_num_threads = options.threads or available_cores()
        settings.inter_op_num_threads = 1
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = _session(ort, source, settings)
        except Exception as error:  # the bindings raise one class a status, none public
            where = "the graph" if isinstance(model, bytes) else str(model)
            raise BuildError(f"ONNX Runtime cannot load {where}: {str(error).strip().splitlines()[0]}") from error
        if self._session.get_providers() != [PROVIDER]:
            raise BuildError(f"ONNX Runtime runs on {self._session.get_providers()}, not on {PROVIDER} alone")
        self.fmt = fmt
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self.batches = options.dynamic_batch
        self._ort, self._source, self._optimised, self._precision = ort, source, optimised, options.precision

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise BuildError(f"ONNX Runtime failed to run: {str(error).strip().splitlines()[0]}") from error

    def executed_precision(self) -> ExecutedPrecision:
        """By the operators that the session runs, from its own profile of one inference on zeros.

        Nothing is claimed of a typed file that is only read for us: processors without fp16 emulate it.
        """
        if not self._optimised and self._precision != "fp32":
            return ExecutedPrecision()
        return by_precision(
            (_precision_of(args), _multiply_adds(args)) for args in self._profile() if _multiplies(args["op_name"])
        )

    def _profile(self) -> Iterator[Mapping[str, Any]]:
        """What ONNX Runtime notes of each operator that it ran: `op_name`, `input_type_shape`, `output_type_shape`."""
        with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
            settings = _settings(self._ort, optimised=self._optimised)
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            # The same operators, in layouts that show their shapes: weights that are packed are not told at all, and
            # convolutions in blocks of channels with their channels rounded up.
            settings.add_session_config_entry("session.disable_prepacking", "1")
            session = _session(self._ort, self._source, settings, without=("NchwcTransformer",))
            batch = self.batches.optimum if self.batches else 1
            session.run(None, {spec.name: np.zeros(spec.with_batch(batch), spec.dtype) for spec in self.inputs})
            events = json.loads(Path(session.end_profiling()).read_text())
        return (event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {}))

    def close(self) -> None:
        self._session = None


def _settings(ort: Any, *, optimised: bool) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    return settings


def _session(ort: Any, source: str | bytes, settings: Any, *, without: Sequence[str] = ()) -> Any:
    # ONNX Runtime would quantise what a graph leaves in fp32 between quantised neighbours, by one scale a tensor.
    disabled = ["WeightBiasQuantization", *without]
    return ort.InferenceSession(source, settings, providers=[PROVIDER], disabled_optimizers=disabled)


# Where an operator has its weights among its inputs, (M, C/groups, kH, kW) whatever the layout of the data.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "QGemm", "QLinearMatMul", "MatMulInteger",
                       "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})  # fmt: skip
_ATTENTIONS = frozenset({"Attention", "MultiHeadAttention"})


def _multiplies(op_name: str) -> bool:
    return any(part in op_name for part in ("Conv", "MatMul", "Gemm", "Attention", "Einsum"))


def _precision_of(args: Mapping[str, Any]) -> str:
    """By the type that the operator reads: a float operator on what was dequantised is a float operator."""
    name = str(args["op_name"])
    types = [next(iter(entry)) for entry in args.get("input_type_shape", [])]
    if name.startswith(("QLinear", "DynamicQuantize")) or "Integer" in name or types[:1] in (["uint8"], ["int8"]):
        return "int8"
    return {"float16": "fp16", "double": "fp64", "bfloat16": "bf16"}.get(types[0] if types else "float", "fp32")


def _multiply_adds(args: Mapping[str, Any]) -> int | None:
    """Of one operator, by the shapes that it ran on; None where they do not tell."""
    name = str(args["op_name"])
    inputs, outputs = _shapes(args.get("input_type_shape", ())), _shapes(args.get("output_type_shape", ()))
    if not inputs or not outputs:
        return None
    if name in _CONVOLUTIONS and len(inputs) > _CONVOLUTIONS[name]:
        weights = inputs[_CONVOLUTIONS[name]]
        return convolution_multiply_adds(outputs[0], weights, weights[0]) if weights else None
    if name in _PRODUCTS:
        return product_multiply_adds(inputs[0], outputs[0])
    if name in _ATTENTIONS and len(inputs) >= 3 and min(len(shape) for shape in inputs[:3]) >= 3:
        return attention_multiply_adds(inputs[0], inputs[1], outputs[0])
    return None


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[Shape]:
    """Of the tensors of an operator in order; each entry has one shape, by its type."""
    return [tuple(next(iter(entry.values()))) for entry in entries]


def _spec(value: Any) -> TensorSpec:
    shape: list[Dim] = [dim if isinstance(dim, int) else "batch" for dim in value.shape]
    if value.type not in _DTYPES:
        raise BuildError(f"the model's {value.name} is a {value.type}, which edgevit does not feed")
    return TensorSpec(value.name, _DTYPES[value.type], tuple(shape))
