"""TensorRT 8.6, 10 and 11 on the machine that it is installed on: a Jetson with JetPack 6 or 7, or a desktop GPU.

From 10 on, the precision stands in the graph and the network is strongly typed; 8.6 alone takes builder flags.
TensorRT answers a failure with None, False or nothing at all: each answer is looked at.

In this file a variable named `builder` is always a `tensorrt.Builder`, and so on: the names and their classes stand in
tests/runtimes/test_tensorrt_api.py, which holds everything read from them against the API of every version.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np

from edgevit.errors import BuildError, MissingError
from edgevit.runtimes import cuda
from edgevit.runtimes.base import Artifact, BatchRange, BuildOptions, Engine, ExecutedPrecision, Runtime
from edgevit.runtimes.tensorrt_plan import (
    ENGINE,
    EngineRecord,
    Line,
    Memory,
    executed_precision,
    host_free_bytes,
    profile_shapes,
    supported_line,
    tensor_spec,
    versions,
    workspace_bytes,
)
from edgevit.tensors import Array, Precision, TensorSpec

# Called with the phase of a build and how much of it is done, from 0 to 1.
OnPhase: TypeAlias = Callable[[str, float], None]


class TensorRt(Runtime):
    """TensorRT on this machine's GPU; it builds for this GPU, this version and this system alone."""

    fmt: ClassVar[str] = "trt"
    title: ClassVar[str] = "TensorRT"
    module: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "trt"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

    def __init__(self, on_phase: OnPhase | None = None) -> None:
        self._on_phase = on_phase

    def load(self) -> ModuleType:
        """TensorRT's module, of a version that edgevit builds with. Raises MissingError with what to install."""
        try:
            trt = super().load()
        except MissingError as error:
            if not Path("/etc/nv_tegra_release").exists():
                raise
            raise MissingError(
                f"TensorRT comes with JetPack and is not seen from here ({error.__cause__}); make the virtual "
                "environment with --system-site-packages, or sudo apt install python3-libnvinfer"
            ) from error
        supported_line(trt.__version__)
        return trt

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Builds for this machine, reads back which precision runs, and writes the engine and what it is bound to.

        Raises BuildError with TensorRT's own words, PrecisionError where another precision runs, MissingError without
        TensorRT or a GPU.
        """
        self.require_precision(options.precision)
        trt, device = self.load(), cuda.device()
        record = _record_here(trt, device)
        logger = _logger(trt)
        start = time.perf_counter()
        workspace = workspace_bytes(options.workspace_mb, _memory(device), model.stat().st_size)
        content = _build(trt, model, options, logger, record, workspace, self._on_phase)
        build_s = time.perf_counter() - start
        path = folder / ENGINE
        with TensorRtEngine(trt, content, options, logger) as engine:
            precision = engine.executed_precision()
        precision.require(options.precision, runtime=self.title)
        path.write_bytes(content)
        told = record.write(folder, layers=dict(precision.layers), workspace_bytes=workspace)
        return Artifact(fmt=self.fmt, files=(path, told), build_s=build_s, notes=record.notes)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        """Loads an engine that was built here. Raises BuildError for one from another version, GPU or system."""
        trt = self.load()
        EngineRecord.read(artifact).require(_record_here(trt, cuda.device()), artifact)
        return TensorRtEngine(trt, artifact.read_bytes(), options, _logger(trt))


# The build


def _build(
    trt: Any,
    model: Path,
    options: BuildOptions,
    logger: Any,
    record: EngineRecord,
    workspace: int,
    on_phase: OnPhase | None,
) -> bytes:
    """The engine's bytes. Raises BuildError with TensorRT's own words."""
    line = supported_line(record.tensorrt)
    logger.take()  # what went before is not this build's
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(_weakly_typed(trt) if line == "8.6" else _strongly_typed(trt))
        _parse(trt, network, logger, model, line)
        config = _configure(trt, builder, options, workspace)
        _add_profile(builder, config, _network_inputs(network), options, logger)
        if line == "8.6":
            _allow_precision(trt, config, network, options.precision)
        cache_file = _cache_file(options, record)
        _use_timing_cache(config, cache_file, logger)
        monitor = None
        if line != "8.6" and on_phase is not None:
            monitor = _watch(trt, config, on_phase)
        serialized = builder.build_serialized_network(network, config)
    except (RuntimeError, TypeError, ValueError) as error:  # what pybind11 makes of a null pointer, among others
        raise _failed("the builder stopped", logger, str(error)) from error
    if monitor is not None:
        monitor.raise_what_stopped_it()
    if serialized is None:
        raise _failed("the build gave no engine", logger)
    _keep_timing_cache(config, cache_file)
    return bytes(serialized)


@versions("8.6")
def _weakly_typed(trt: Any) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


@versions("10", "11")
def _strongly_typed(trt: Any) -> int:
    """The flag that 10 needs and 11 takes for granted. Its number differs between them."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: Any, network: Any, logger: Any, model: Path, line: Line) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)) or parser.num_errors:
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [_told(fault) if line == "8.6" else _told_with_node(fault) for fault in faults]
        raise _failed(f"the parser does not read {model.name}", logger, *told)
    if not network.num_outputs:  # a file that holds nothing parses
        raise BuildError(f"{model} holds no network; export it again")


@versions("8.6")
def _told(fault: Any) -> str:
    return f"node {fault.node()}: {fault.desc()}"


@versions("10", "11")
def _told_with_node(fault: Any) -> str:
    return f"{fault.node_operator()} {fault.node_name()}: {fault.desc()}"


def _configure(trt: Any, builder: Any, options: BuildOptions, workspace: int) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector tells names alone
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) != workspace:
        raise BuildError(f"TensorRT takes no workspace of {workspace} bytes; give another --workspace")
    if options.precision == "fp32":
        # On by default: it would multiply fp32 with 10 bits of mantissa.
        config.clear_flag(trt.BuilderFlag.TF32)
    return config


def _add_profile(
    builder: Any, config: Any, inputs: Sequence[TensorSpec], options: BuildOptions, logger: Any
) -> None:
    shapes = profile_shapes(inputs, options)
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, (smallest, frequent, largest) in shapes.items():
        profile.set_shape(name, smallest, frequent, largest)
    if config.add_optimization_profile(profile) < 0:
        raise _failed(f"the batches {options.dynamic_batch} make no valid profile", logger)


@versions("8.6")
def _allow_precision(trt: Any, config: Any, network: Any, precision: Precision) -> None:
    """Lets 8.6 use lower precision where it is faster: its networks are weakly typed, and the graph only a wish."""
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    half = any(_makes_half(trt, layer) for layer in layers)
    if precision == "fp16" or half:
        config.set_flag(trt.BuilderFlag.FP16)


@versions("8.6")
def _makes_half(trt: Any, layer: Any) -> bool:
    tensors = (layer.get_output(index) for index in range(layer.num_outputs))
    return any(tensor is not None and tensor.dtype == trt.DataType.HALF for tensor in tensors)


def _network_inputs(network: Any) -> tuple[TensorSpec, ...]:
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    return tuple(tensor_spec(tensor.name, _type_name(tensor.dtype), tuple(tensor.shape)) for tensor in tensors)


def _type_name(dtype: Any) -> str:
    return str(dtype.name)


# The timing cache


def _cache_file(options: BuildOptions, record: EngineRecord) -> Path | None:
    """One file for each version and GPU: a cache from elsewhere is refused, or misleads."""
    if options.cache_dir is None:
        return None
    gpu = "".join(letter if letter.isalnum() else "-" for letter in record.gpu)
    return options.cache_dir / f"tensorrt-{record.tensorrt}-{gpu}-sm{record.compute_capability}.timing"


def _use_timing_cache(config: Any, file: Path | None, logger: Any) -> None:
    if file is None:
        return
    kept = file.read_bytes() if file.exists() else b""
    for content in (kept, b""):  # a damaged file costs time and nothing else
        cache = config.create_timing_cache(content)
        # False: a cache from another device is not taken.
        if cache is not None and config.set_timing_cache(cache, False):  # noqa: FBT003
            logger.take()
            return
    raise _failed("TensorRT takes no timing cache, not even an empty one", logger)


def _keep_timing_cache(config: Any, file: Path | None) -> None:
    """Writes the cache beside its place and renames it, so that no other build reads half of it."""
    cache = config.get_timing_cache() if file is not None else None
    serialized = cache.serialize() if cache is not None else None
    if file is None or serialized is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_bytes(bytes(serialized))
    os.replace(part, file)


# What TensorRT says meanwhile


@functools.cache
def _logger(trt: Any) -> Any:
    """The process's one logger: TensorRT uses the first that it is given, and ignores all later ones."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        """Keeps errors until they are asked for, and prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(msg)

        def take(self) -> list[str]:
            """The errors since the last time."""
            errors, self._errors = self._errors, []
            return errors

    return Log()


@versions("10", "11")
def _watch(trt: Any, config: Any, on_phase: OnPhase) -> Any:
    """Tells `on_phase` of every step of the build, and ends the build where the user wants out."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT has no types
        """No exception may leave these methods: TensorRT, which calls them, would end the process."""

        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}
            self._stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if self._stopped_by is None:
                    on_phase(phase_name, min(1.0, (step + 1) / max(1, self._steps.get(phase_name, 1))))
            except BaseException as error:  # noqa: BLE001  # an interrupt too; it is raised after the build
                self._stopped_by = error
            return self._stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def raise_what_stopped_it(self) -> None:
            if self._stopped_by is not None:
                raise self._stopped_by

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def _failed(what: str, logger: Any, *told: str) -> BuildError:
    """The error for a failure that TensorRT only logs; its first words are nearest to the cause."""
    words = [*told, *logger.take()]
    said = " ".join(" ".join(words[:2]).split())
    return BuildError(f"TensorRT: {what}: {said or 'it gives no reason'}; edgevit lint --target trt may tell more")


# The machine


def _record_here(trt: Any, device: cuda.Device) -> EngineRecord:
    """What an engine that is built here is bound to."""
    return EngineRecord(
        tensorrt=trt.__version__,
        compute_capability=device.compute_capability,
        gpu=device.name,
        system=f"{platform.system()}-{platform.machine()}",
    )


def _memory(device: cuda.Device) -> Memory:
    meminfo = Path("/proc/meminfo")
    host = host_free_bytes(meminfo.read_text("ascii")) if meminfo.exists() else device.free_bytes
    return Memory(device_free=device.free_bytes, host_free=host, shared=device.integrated)
