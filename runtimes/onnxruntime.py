"""ONNX Runtime on the CPU, and the ONNX file itself, which ONNX Runtime reads for us without touching it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, ExecutedPrecision, Runtime, available_cores
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
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
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
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")  # a file holds either; what runs it decides the rest
    optimised: ClassVar[bool] = False


class OnnxRuntimeEngine(Engine):
    """A session with the provider that was asked for, or none at all."""

    def __init__(
        self, ort: Any, model: Path | bytes, options: BuildOptions, *, fmt: str = "ort", optimised: bool = True
    ) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads or available_cores()
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = ort.InferenceSession(source, settings, providers=[PROVIDER])
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
        return ExecutedPrecision(dict(self._profile()))

    def _profile(self) -> Counter[str]:
        with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
            settings = self._ort.SessionOptions()
            settings.log_severity_level = 3
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            levels = self._ort.GraphOptimizationLevel
            settings.graph_optimization_level = levels.ORT_ENABLE_ALL if self._optimised else levels.ORT_DISABLE_ALL
            session = self._ort.InferenceSession(self._source, settings, providers=[PROVIDER])
            batch = self.batches.optimum if self.batches else 1
            session.run(None, {spec.name: np.zeros(spec.with_batch(batch), spec.dtype) for spec in self.inputs})
            events = json.loads(Path(session.end_profiling()).read_text())
        return Counter(
            _precision_of(event["args"])
            for event in events
            if event.get("cat") == "Node" and _multiplies(event.get("args", {}).get("op_name", ""))
        )

    def close(self) -> None:
        self._session = None


def _multiplies(op_name: str) -> bool:
    return any(part in op_name for part in ("Conv", "MatMul", "Gemm", "Attention"))


def _precision_of(args: Mapping[str, Any]) -> str:
    name = str(args["op_name"])
    types = [next(iter(entry)) for entry in args.get("input_type_shape", [])]
    if name.startswith("QLinear") or "Integer" in name or "QGemm" in name or types[:1] in (["uint8"], ["int8"]):
        return "int8"
    return {"float16": "fp16", "double": "fp64", "bfloat16": "bf16"}.get(types[0] if types else "float", "fp32")


def _spec(value: Any) -> TensorSpec:
    shape: list[Dim] = [dim if isinstance(dim, int) else "batch" for dim in value.shape]
    if value.type not in _DTYPES:
        raise BuildError(f"the model's {value.name} is a {value.type}, which edgevit does not feed")
    return TensorSpec(value.name, _DTYPES[value.type], tuple(shape))
