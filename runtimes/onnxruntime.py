"""ONNX Runtime on CPU, and unoptimized sessions of it that serve as the reference for an ONNX file."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError, InferenceError
from edgevit.files import MODEL_FILE, first_line, weights_file
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Operations, Runtime, ThroughputRunner, available_cores
from edgevit.runtimes.denormals import KEEP, ZERO, can_set_denormals, denormals, set_denormals
from edgevit.runtimes.huge_pages import HUGE_PAGES, HugePages, watch_memory
from edgevit.runtimes.layer_profile import PROFILE_WARMUP, LayerProfile
from edgevit.runtimes.matmul_model import matmul_model
from edgevit.runtimes.node_names import node_names
from edgevit.runtimes.onnxruntime_cache import MIN_EXTERNAL_BYTES, OpenedSession, OptimizedGraph
from edgevit.runtimes.onnxruntime_layers import read_layers
from edgevit.runtimes.onnxruntime_precision import read_precision
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.session_settings import SessionSettings, Setting
from edgevit.types import Array, Dim, Feeds, TensorSpec

_LOG = logging.getLogger(__name__)
PROVIDER = "CPUExecutionProvider"
SPINNING = Setting("spinning", ("on", "off"), of_threads=True)  # whether idle threads poll for work instead of sleeping
PINNING = Setting("pinning", ("off", "on"), of_threads=True)  # whether each thread keeps to one core
ARENA = Setting("arena", ("on", "off"))  # whether freed memory is kept for the next inference
MEMORY_PATTERN = Setting("memory_pattern", ("on", "off"))  # whether all tensors of an inference are allocated at once
DENORMALS = Setting("denormals", ("keep", "zero"))  # numbers below 1.2e-38, which slow some processors down
GRAPH_OPTIMIZATION = Setting("graph_optimization", ("all", "extended"))  # "extended": without changes of layout
# WeightBiasQuantization would quantize fp32 weights between quantized neighbors, with one scale per tensor.
_DISABLED = ("WeightBiasQuantization",)
_FATAL = 4  # log severity: errors are raised as exceptions too, so that their log lines would repeat them
_MAX_ELEMENTS = 2**32  # of an input or output
_LARGE_BYTES = 256_000_000  # of a model: loading it a second time is cheaper than holding it twice
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
    """ONNX Runtime's CPU provider; it optimizes the exported graph for this machine each time it loads it."""

    fmt: ClassVar[str] = "ort"
    module: ClassVar[str] = "onnxruntime"
    settings: ClassVar[tuple[Setting, ...]] = (
        *(SPINNING, GRAPH_OPTIMIZATION, ARENA, MEMORY_PATTERN),
        *(PINNING, DENORMALS, HUGE_PAGES),
    )
    optimized: ClassVar[bool] = True
    caches_compiled: ClassVar[bool] = True

    def load(self) -> ModuleType:
        """Import ONNX Runtime, silence its log and turn its telemetry off.

        The environment variable that edgevit/__init__.py sets does that on Linux, this call on the other platforms.
        """
        ort = super().load()
        ort.set_default_logger_severity(_FATAL)
        if hasattr(ort, "disable_telemetry_events"):
            ort.disable_telemetry_events()
        return ort

    def usable_values(self, setting: Setting) -> tuple[str, ...]:
        if setting is DENORMALS and not can_set_denormals():
            return (setting.default,)
        return super().usable_values(setting)

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Copy the ONNX file and check that it loads.

        The optimized graph is not stored: it would be specific to this machine's processor.
        """
        self.require_precision(options.precision)
        start = time.perf_counter()
        target = folder / MODEL_FILE
        weights = weights_file(target)
        if model.resolve() != target.resolve():
            shutil.copyfile(model, target)
            if weights_file(model).exists():
                shutil.copyfile(weights_file(model), weights)
        self.open(target, options).close()
        files = (target, weights) if weights.exists() else (target,)
        return Artifact(fmt=self.fmt, files=files, build_s=time.perf_counter() - start)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        return OnnxRuntimeEngine(self.load(), artifact, options, fmt=self.fmt, optimized=self.optimized)

    def open_with_precision(self, artifact: Path, options: BuildOptions) -> tuple[Engine, ExecutedPrecision]:
        """Load an artifact and profile its first inference, so that no second session is needed for the precision.

        With a cache folder, the optimized graph and the precisions of an earlier session are used if they are there.
        """
        engine = OnnxRuntimeEngine(self.load(), artifact, options, fmt=self.fmt, optimized=self.optimized, profile=True)
        return engine, engine.executed_layers()


class OnnxFile(OnnxRuntime):
    """The ONNX file itself, run node by node without optimizations, as a reference."""

    fmt: ClassVar[str] = "onnx"
    optimized: ClassVar[bool] = False
    caches_compiled: ClassVar[bool] = False


class OnnxRuntimeEngine(Engine):
    """A session with the CPU provider. Raises BuildError if it would run on another one."""

    def __init__(
        self,
        ort: Any,
        model: Path | bytes,
        options: BuildOptions,
        *,
        fmt: str = "ort",
        optimized: bool = True,
        profile: bool = False,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        """`ort` is the module onnxruntime; `profile=True` runs the session once, on zeros, and records its layers.

        `options.cache_dir`, the folder for optimized graphs, is used only then, since a graph is saved with its layers.
        `weights` are the arrays that `model`, given as bytes, declares as external data.
        """
        self._weights = weights or {}
        self._ort, self._optimized, self._precision = ort, optimized, options.precision
        self._source = model if isinstance(model, bytes) else _source(model)
        self.fmt = fmt
        self.batches = options.dynamic_batch
        self._threads = options.threads or available_cores()
        self._chosen = options.session
        self._denormals = ZERO if _zeroes_denormals(options.session) else KEEP
        huge_pages = watch_memory(options.session)
        self._layers: ExecutedPrecision | None = None
        if profile and self._reports_precision:
            opened = self._open_profiled() if options.cache_dir is None else self._open_saved(options.cache_dir)
            self._session, self._layers = opened.session, ExecutedPrecision(opened.layers)
        else:
            self._session = self._load(self._session_settings())
        if self._session.get_providers() != [PROVIDER]:
            raise BuildError(f"ONNX Runtime runs on {self._session.get_providers()} instead of only {PROVIDER}")
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._watch(huge_pages)

    def _open_saved(self, cache_dir: Path) -> OpenedSession:
        """Open the optimized graph that is saved in a folder for this engine and machine, or save it there."""
        graph = OptimizedGraph(cache_dir, self._graph_settings())
        if (saved := graph.find()) is not None:
            settings = self._session_settings()
            settings.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                return OpenedSession(self._load(settings, source=str(saved.model)), saved.layers)
            except BuildError as error:  # ONNX Runtime 1.20 reports no full disk when it saves a graph
                _LOG.warning("edgevit: the optimized graph is saved again: %s", error)
        return graph.save(self._open_saving) or self._open_profiled()

    def _graph_settings(self) -> dict[str, str]:
        """Return all that changes the optimized graph of a model on a machine; its threads do not."""
        return {
            "version": str(self._ort.__version__),
            "build": str(self._ort.get_build_info()),
            "level": self._chosen.get(GRAPH_OPTIMIZATION),
            "disabled": ",".join(_DISABLED),
        }

    def _open_saving(self, model: Path, weights: str) -> OpenedSession:
        """Open a session that saves its optimized graph as `model`, with the weights in a file beside it."""
        settings = self._session_settings()
        settings.optimized_model_filepath = str(model)
        prefix = "session.optimized_model_external_initializers_"
        settings.add_session_config_entry(f"{prefix}file_name", weights)
        settings.add_session_config_entry(f"{prefix}min_size_in_bytes", str(MIN_EXTERNAL_BYTES))
        return self._open_profiled(settings)

    def _open_profiled(self, settings: Any = None) -> OpenedSession:
        """Open a session and read its layers from the profile of its first run, on zeros."""
        batch = self.batches.minimum if self.batches else 1
        session, events = self._profile(settings or self._session_settings(), batch=batch)
        return OpenedSession(session, read_precision(events).layers)

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        session = self._require_open(self._session)
        outputs = _run(session, self._output_names, feeds, mode=self._denormals)
        return dict(zip(self._output_names, outputs, strict=True))

    def _session_settings(self) -> Any:
        settings = _settings(self._ort, optimized=self._optimized)
        if self._optimized and self._chosen.get(GRAPH_OPTIMIZATION) == "extended":
            settings.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.intra_op_num_threads = self._threads
        settings.inter_op_num_threads = 1
        _apply(self._chosen, settings, threads=self._threads)
        return settings

    @property
    def _reports_precision(self) -> bool:
        """False for an unoptimized session of a reduced-precision graph: fp16 may be emulated in fp32 there."""
        return self._optimized or self._precision == "fp32"

    def executed_precision(self) -> ExecutedPrecision:
        """Return layers and MACs from the profile of one inference, on zeros, in a second session."""
        self._require_open(self._session)
        if not self._reports_precision:
            return ExecutedPrecision()
        large = not isinstance(self._source, bytes) and _size_bytes(Path(self._source)) > _LARGE_BYTES
        if large:
            self._session = None  # one session at a time: each holds a copy of the weights
        try:
            return read_precision(self._events_with_shapes())
        finally:
            if large:
                self._session = self._load(self._session_settings())

    def _events_with_shapes(self, feeds: Feeds | None = None) -> Sequence[Mapping[str, Any]]:
        """Profile one inference, on zeros if `feeds` is None, of the same operators in layouts that show their shapes.

        Otherwise the profile omits packed weights, and rounds the channels of convolutions in blocked layouts up.
        """
        settings = _settings(self._ort, optimized=self._optimized)
        settings.add_session_config_entry("session.disable_prepacking", "1")
        batch = self.batches.optimum if self.batches else 1
        return self._profile(settings, batch=batch, feeds=feeds, disabled=("NchwcTransformer",))[1]

    def executed_layers(self) -> ExecutedPrecision:
        return self.executed_precision() if self._layers is None else self._layers

    def profile_layers(self, feeds: Feeds, *, runs: int) -> LayerProfile:
        # The session is dropped at once: it holds a copy of the weights, and another one is loaded for the shapes.
        runs += PROFILE_WARMUP
        events = profile_session(self._load, self._session_settings(), feeds=feeds, runs=runs, mode=self._denormals)[1]
        names = {} if isinstance(self._source, bytes) else node_names(Path(self._source))
        return read_layers(events, names, self._events_with_shapes(feeds), skip=PROFILE_WARMUP)

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        return matmul(self._ort, self._session_settings(), shape, precision)

    def throughput_runner(self, streams: int) -> ThroughputRunner:
        settings = self._session_settings()
        settings.intra_op_num_threads = max(1, self._threads // streams)
        huge_pages = watch_memory(self._chosen)
        return OnnxRuntimeStreams(self._load(settings), streams, mode=self._denormals, huge_pages=huge_pages)

    def _profile(
        self,
        settings: Any,
        *,
        batch: int,
        feeds: Feeds | None = None,
        disabled: Sequence[str] = (),
    ) -> tuple[Any, Sequence[Mapping[str, Any]]]:
        """Return a new session and the profile events of one inference, of `batch` zeros if `feeds` is None."""

        def load(settings: Any) -> Any:
            return self._load(settings, disabled=disabled)

        return profile_session(load, settings, batch=batch, feeds=feeds, mode=self._denormals)

    def _load(self, settings: Any, *, disabled: Sequence[str] = (), source: str | None = None) -> Any:
        """Return a session of the engine's file, or of `source`, its saved optimized graph."""
        model = source or self._source
        if self._weights:
            values = [self._ort.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
            settings.add_external_initializers(list(self._weights), values)
        try:
            with denormals(KEEP):  # constants are folded exactly, and the mode that a first session sets is undone
                if self._denormals == ZERO:
                    _open_first_session(self._ort)
                return self._ort.InferenceSession(
                    model, settings, providers=[PROVIDER], disabled_optimizers=[*_DISABLED, *disabled]
                )
        except Exception as error:  # the bindings raise a private class for each status
            name = "the graph" if isinstance(model, bytes) else model
            raise BuildError(f"ONNX Runtime cannot load {name}: {first_line(error)}") from error

    def close(self) -> None:
        self._session = None


def matmul(ort: Any, settings: Any, shape: tuple[int, int, int], precision: str) -> Operations | None:
    """Return one matrix product in a session with `settings`; see Engine.matmul."""
    rows, inner, columns = shape
    dtypes = {"fp32": ("float32", "float32", "float32"), "int8": ("uint8", "int8", "int32")}.get(precision)
    if dtypes is None:
        return None
    weight = np.ones((inner, columns), dtypes[1])
    model = matmul_model(rows, weight, input_dtype=dtypes[0], output_dtype=dtypes[2])
    session = ort.InferenceSession(model, settings, providers=[PROVIDER])
    return Operations(run=functools.partial(session.run, None, {"x": np.ones((rows, inner), dtypes[0])}))


class OnnxRuntimeStreams(ThroughputRunner):
    """Threads that run one session at the same time."""

    def __init__(self, session: Any, streams: int, *, mode: int, huge_pages: HugePages | None) -> None:
        """`mode` is that of denormal numbers; `huge_pages` has watched the memory since before the session."""
        self._session, self.streams, self._denormals = session, streams, mode
        self._watch(huge_pages)

    def _run_while(self, feeds: Feeds, more: Callable[[int], bool]) -> int:
        started, lock = 0, threading.Lock()

        def start_another() -> bool:
            nonlocal started
            with lock:
                if not more(started):
                    return False
                started += 1
                return True

        def work() -> None:
            while start_another():
                _run(self._session, None, feeds, mode=self._denormals)

        with ThreadPoolExecutor(self.streams) as pool:
            for job in [pool.submit(work) for _ in range(self.streams)]:
                job.result()
        return started

    def close(self) -> None:
        self._session = None


def profile_session(
    load: Callable[[Any], Any],
    settings: Any,
    *,
    batch: int = 1,
    feeds: Feeds | None = None,
    runs: int = 1,
    mode: int = KEEP,
) -> tuple[Any, Sequence[Mapping[str, Any]]]:
    """Return a session that `load` makes of `settings`, and the profile events of its first runs.

    It runs on `feeds`, or on zeros for `batch` images; `mode` is that of denormal numbers.
    Later runs of the session are not profiled.
    """
    with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = load(settings)
        if feeds is None:
            specs = [_spec(value) for value in session.get_inputs()]
            feeds = {spec.name: np.zeros(spec.with_batch(batch), spec.dtype) for spec in specs}
        for _ in range(runs):
            _run(session, None, feeds, mode=mode)
        try:
            return session, json.loads(Path(session.end_profiling()).read_text())
        except (OSError, ValueError) as error:
            raise BuildError(
                f"ONNX Runtime could not write its profile to {folder} ({error}); is the disk full? "
                "Free some space, or set TMPDIR to another folder"
            ) from error


def _size_bytes(model: Path) -> int:
    weights = weights_file(model)
    return model.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


def _source(model: Path) -> str | bytes:
    """Return the model as an absolute path, which stays valid after a change of folder, or as bytes."""
    path = str(model.absolute())
    try:
        path.encode()
    except UnicodeEncodeError:  # ONNX Runtime refuses paths that are not UTF-8
        return model.read_bytes()
    return path


def _run(session: Any, names: Sequence[str] | None, feeds: Feeds, *, mode: int) -> list[Array]:
    """Run a session; `mode` is that of denormal numbers on this thread, which has its own again afterwards."""
    before = set_denormals(mode)
    try:
        outputs: list[Array] = session.run(names, feeds if type(feeds) is dict else dict(feeds))
    except Exception as error:
        raise InferenceError(f"ONNX Runtime failed to run the model: {first_line(error)}") from error
    finally:
        if before != mode:
            set_denormals(before)
    return outputs


@functools.cache
def _open_first_session(ort: Any) -> None:
    """Open a session that keeps denormal numbers: the first one of a process sets the mode of its thread.

    One that zeroes them would fold its constants in that mode if it is the first, and exactly if it is not.
    """
    model = matmul_model(1, np.ones((1, 1), np.float32), input_dtype="float32", output_dtype="float32")
    ort.InferenceSession(model, _settings(ort, optimized=False), providers=[PROVIDER])


def _settings(ort: Any, *, optimized: bool) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    return settings


def _apply(chosen: SessionSettings, settings: Any, *, threads: int) -> None:
    """Apply the session settings of a bundle to ONNX Runtime's."""
    settings.enable_cpu_mem_arena = chosen.get(ARENA) == "on"
    settings.enable_mem_pattern = chosen.get(MEMORY_PATTERN) == "on"
    entries = {}
    if chosen.get(SPINNING) == "off":
        entries["session.intra_op.allow_spinning"] = "0"
    if _zeroes_denormals(chosen):  # on the threads of the pool
        entries["session.set_denormal_as_zero"] = "1"
    if chosen.get(PINNING) == "on" and 1 < threads <= available_cores():
        entries["session.intra_op_thread_affinities"] = _affinities(threads)
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)


def _zeroes_denormals(chosen: SessionSettings) -> bool:
    """Whether denormal numbers are zero, as chosen: not on systems where only a part of the threads could do it."""
    return chosen.get(DENORMALS) == "zero" and can_set_denormals()


def _affinities(threads: int) -> str:
    """Return the core of each thread but the caller's, which ONNX Runtime leaves alone; it counts cores from 1."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(threads)
    return ";".join(str(core + 1) for core in list(cores)[1:threads])


def _spec(value: Any) -> TensorSpec:
    shape: list[Dim] = [dim if isinstance(dim, int) else "batch" for dim in value.shape]
    if value.type not in _DTYPES:
        raise BuildError(f"unsupported dtype {value.type} of {value.name}; supported are {', '.join(_DTYPES.values())}")
    if math.prod(dim for dim in shape if isinstance(dim, int)) > _MAX_ELEMENTS:
        raise BuildError(f"{value.name} has the shape {shape}, which no device can hold; export the model again")
    return TensorSpec(value.name, _DTYPES[value.type], tuple(shape))
