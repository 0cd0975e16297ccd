"""ONNX Runtime on the CPU, and the ONNX file itself, which ONNX Runtime reads for us without touching it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError
from edgevit.files import first_line
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Runtime, available_cores
from edgevit.runtimes.onnxruntime_precision import read_back
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, Dim, TensorSpec

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
    module: ClassVar[str] = "onnxruntime"
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

    def open_with_precision(self, artifact: Path, options: BuildOptions) -> tuple[Engine, ExecutedPrecision]:
        """The session notes its first inference, on zeros, so that no second one is loaded for it."""
        engine = OnnxRuntimeEngine(self.load(), artifact, options, fmt=self.fmt, optimised=self.optimised, noted=True)
        return engine, engine.executed_layers()


class OnnxFile(OnnxRuntime):
    """The ONNX file, read node by node with no optimisation: what the file itself says, as a judge reads it."""

    fmt: ClassVar[str] = "onnx"
    optimised: ClassVar[bool] = False


class OnnxRuntimeEngine(Engine):
    """A session with the provider that was asked for, or none at all."""

    def __init__(
        self,
        ort: Any,
        model: Path | bytes,
        options: BuildOptions,
        *,
        fmt: str = "ort",
        optimised: bool = True,
        noted: bool = False,
    ) -> None:
        """`noted`: the session runs once, on zeros, and notes which layers ran."""
        self._ort, self._optimised, self._precision = ort, optimised, options.precision
        self._source = model if isinstance(model, bytes) else _source(model)
        self.fmt = fmt
        self.batches = options.dynamic_batch
        settings = _settings(ort, optimised=optimised)
        settings.intra_op_num_threads = options.threads or available_cores()
        settings.inter_op_num_threads = 1
        self._layers: ExecutedPrecision | None = None
        if noted and self._tells:
            self._session, profile = self._noted(settings, batch=self.batches.minimum if self.batches else 1)
            self._layers = replace(read_back(profile), macs={})
        else:
            self._session = self._load(settings)
        if self._session.get_providers() != [PROVIDER]:
            raise BuildError(f"ONNX Runtime runs on {self._session.get_providers()}, not on {PROVIDER} alone")
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._require_open(self._session)
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, _run(self._session, names, feeds), strict=True))

    @property
    def _tells(self) -> bool:
        """Nothing is claimed of a typed file that is only read for us: processors without fp16 emulate it."""
        return self._optimised or self._precision == "fp32"

    def executed_precision(self) -> ExecutedPrecision:
        """By the operators that a session like this one runs, from its own profile of one inference on zeros."""
        if not self._tells:
            return ExecutedPrecision()
        settings = _settings(self._ort, optimised=self._optimised)
        # The same operators, in layouts that show their shapes: weights that are packed are not told at all, and
        # convolutions in blocks of channels with their channels rounded up.
        settings.add_session_config_entry("session.disable_prepacking", "1")
        batch = self.batches.optimum if self.batches else 1
        return read_back(self._noted(settings, batch=batch, without=("NchwcTransformer",))[1])

    def executed_layers(self) -> ExecutedPrecision:
        return self.executed_precision() if self._layers is None else self._layers

    def _noted(
        self, settings: Any, *, batch: int, without: Sequence[str] = ()
    ) -> tuple[Any, Iterable[Mapping[str, Any]]]:
        """A session, and what it noted of one inference on zeros; it notes nothing of the later ones."""
        with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._load(settings, without=without)
            specs = [_spec(value) for value in session.get_inputs()]
            _run(session, None, {spec.name: np.zeros(spec.with_batch(batch), spec.dtype) for spec in specs})
            try:
                return session, json.loads(Path(session.end_profiling()).read_text())
            except (OSError, ValueError) as error:
                raise BuildError(
                    f"ONNX Runtime could not note in {folder} what it runs ({error}); is that disk full? "
                    "Make room there, or name another place in TMPDIR"
                ) from error

    def _load(self, settings: Any, *, without: Sequence[str] = ()) -> Any:
        # ONNX Runtime would quantise what a graph leaves in fp32 between quantised neighbours, by one scale a tensor.
        disabled = ["WeightBiasQuantization", *without]
        try:
            return self._ort.InferenceSession(
                self._source, settings, providers=[PROVIDER], disabled_optimizers=disabled
            )
        except Exception as error:  # the bindings raise one class a status, none public
            where = "the graph" if isinstance(self._source, bytes) else self._source
            raise BuildError(f"ONNX Runtime cannot load {where}: {first_line(error)}") from error

    def close(self) -> None:
        self._session = None


def _source(model: Path) -> str | bytes:
    """What a session is made of, now and again later, wherever the process has gone since."""
    place = str(model.absolute())
    try:
        place.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8, which ONNX Runtime takes for no path
        return model.read_bytes()
    return place


def _run(session: Any, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
    try:
        answers: list[Array] = session.run(names, dict(feeds))
    except Exception as error:
        raise BuildError(f"ONNX Runtime failed to run: {first_line(error)}") from error
    return answers


def _settings(ort: Any, *, optimised: bool) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    return settings


def _spec(value: Any) -> TensorSpec:
    shape: list[Dim] = [dim if isinstance(dim, int) else "batch" for dim in value.shape]
    if value.type not in _DTYPES:
        raise BuildError(f"the model's {value.name} is a {value.type}, which edgevit does not feed")
    return TensorSpec(value.name, _DTYPES[value.type], tuple(shape))
