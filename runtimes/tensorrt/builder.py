"""From an ONNX file to an engine's bytes, by one builder for TensorRT 8.6, 10 and 11.

From 10 on, the precision stands in the graph and the network is strongly typed; 8.6 alone takes builder flags. What
is for some versions only is a function of its own, marked by `@versions`.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError
from edgevit.files import write_atomically
from edgevit.runtimes.base import BuildOptions, OnPhase
from edgevit.runtimes.tensorrt.record import EngineRecord
from edgevit.runtimes.tensorrt.shapes import profile_shapes, tensor_spec
from edgevit.runtimes.tensorrt.versions import Line, supported_line, versions
from edgevit.types import Precision, TensorSpec

_NO_MEMORY = r"(?i)out ?of ?memory|bad_alloc|MemoryAllocation"  # in TensorRT's words


def build_serialized_engine(
    trt: Any, model: Path, options: BuildOptions, record: EngineRecord, *, workspace: int, on_phase: OnPhase | None
) -> bytes:
    """The engine's bytes. Raises BuildError with TensorRT's own words."""
    line, logger = supported_line(record.tensorrt), process_logger(trt)
    logger.take()  # what went before is not this build's
    monitor = None
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(_weakly_typed(trt) if line == "8.6" else _strongly_typed(trt))
        _parse(trt, network, model, line)
        config = _configure(trt, builder, options, workspace)
        _add_profile(trt, builder, config, _inputs(network), options)
        if line == "8.6":
            _allow_precision(trt, config, network, options.precision)
        cache_file = _cache_file(options, record)
        if cache_file is not None:
            _use_timing_cache(trt, config, cache_file)
        if line != "8.6" and on_phase is not None:
            monitor = _watch(trt, config, on_phase)
        serialized = builder.build_serialized_network(network, config)
    except (RuntimeError, TypeError, ValueError) as error:  # what pybind11 makes of a null pointer, among others
        raise failed(trt, "the builder stopped", str(error)) from error
    if monitor is not None:
        monitor.raise_what_stopped_it()
    if serialized is None:
        raise failed(trt, "the build gave no engine")
    if cache_file is not None:
        _keep_timing_cache(config, cache_file)
    return bytes(serialized)


def failed(trt: Any, what: str, *told: str, remedy: str | None = None) -> BuildError:
    """The error for a failure that TensorRT only logs; its first words are nearest to the cause."""
    logger = process_logger(trt)
    words = [*told, *logger.take()]
    said = " ".join(" ".join(words[:2]).split())
    if any(re.search(_NO_MEMORY, word) for word in words):
        remedy = "free memory of the GPU (on a Jetson: add swap), or give a smaller --workspace"
    elif remedy is None:
        remedy = f"edgevit lint BUNDLE --target trt:{_target(trt)} may tell more"
    return BuildError(f"TensorRT: {what}: {said or 'it gives no reason'}; {remedy}")


def _target(trt: Any) -> str:
    """TensorRT's version as --target and --trt-version take it."""
    return ".".join(str(trt.__version__).split(".")[:2])


def type_name(dtype: Any) -> str:
    """The name of one of TensorRT's element types; the numbers behind the names differ between versions."""
    return str(dtype.name)


# The network


@versions("8.6")
def _weakly_typed(trt: Any) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


@versions("10", "11")
def _strongly_typed(trt: Any) -> int:
    """The flag that 10 needs and 11 takes for granted."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: Any, network: Any, model: Path, line: Line) -> None:
    parser = trt.OnnxParser(network, process_logger(trt))
    if line == "8.6":
        _normalise_natively(trt, parser)
    if not parser.parse_from_file(str(model)):
        faults = (parser.get_error(index) for index in range(parser.num_errors))
        told = [_told(fault) if line == "8.6" else _told_by_name(fault) for fault in faults]
        remedy = f"export it for this TensorRT: --trt-version {_target(trt)}, which names what does not fit"
        raise failed(trt, f"its parser does not read {model.name}", *told, remedy=remedy)
    if not network.num_outputs:  # it takes any file for a model with nothing in it
        raise BuildError(f"{model.name} is not an ONNX model, or it is damaged; export it again")


@versions("8.6")
def _normalise_natively(trt: Any, parser: Any) -> None:
    """InstanceNormalization as a layer, as from 10 on; 8.6 would look for a plugin, which nobody has loaded."""
    parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)


@versions("8.6")
def _told(fault: Any) -> str:
    return f"{fault.desc()} (node {fault.node()})"


@versions("10", "11")
def _told_by_name(fault: Any) -> str:
    return f"{fault.desc()} (node {fault.node_name()}, {fault.node_operator()})"


def _inputs(network: Any) -> tuple[TensorSpec, ...]:
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    return tuple(tensor_spec(tensor.name, type_name(tensor.dtype), tuple(tensor.shape)) for tensor in tensors)


# The configuration


def _configure(trt: Any, builder: Any, options: BuildOptions, workspace: int) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector tells names alone
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) != workspace:
        raise BuildError(f"TensorRT takes no workspace of {workspace} bytes; give another --workspace")
    if options.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it multiplies fp32 with 10 bits of mantissa
    return config


def _add_profile(trt: Any, builder: Any, config: Any, inputs: Sequence[TensorSpec], options: BuildOptions) -> None:
    shapes = profile_shapes(inputs, options)
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, (smallest, frequent, largest) in shapes.items():
        profile.set_shape(name, smallest, frequent, largest)
    if config.add_optimization_profile(profile) < 0:
        raise failed(trt, f"the batches {options.dynamic_batch} make no valid profile")


@versions("8.6")
def _allow_precision(trt: Any, config: Any, network: Any, precision: Precision) -> None:
    """Lets 8.6 compute in lower precision: its networks are weakly typed, and the graph's types only a wish."""
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    if precision == "fp16" or any(_makes_half(trt, layer) for layer in layers):
        config.set_flag(trt.BuilderFlag.FP16)


@versions("8.6")
def _makes_half(trt: Any, layer: Any) -> bool:
    tensors = (layer.get_output(index) for index in range(layer.num_outputs))
    return any(tensor is not None and tensor.dtype == trt.DataType.HALF for tensor in tensors)


# The timing cache


def _cache_file(options: BuildOptions, record: EngineRecord) -> Path | None:
    """One file for each version and GPU: a cache from elsewhere is refused, or misleads."""
    if options.cache_dir is None:
        return None
    gpu = "".join(letter if letter.isalnum() else "-" for letter in record.gpu)
    return options.cache_dir / f"tensorrt-{record.tensorrt}-{gpu}-sm{record.compute_capability}.timing"


def _use_timing_cache(trt: Any, config: Any, file: Path) -> None:
    """Starts from the timings of earlier builds; a damaged file, or one from another device, costs time alone."""
    kept = b""
    with contextlib.suppress(OSError):  # absent, or another user's
        kept = file.read_bytes()
    for content in (kept, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            process_logger(trt).take()
            return
    raise failed(trt, "it takes no timing cache, not even an empty one")


def _keep_timing_cache(config: Any, file: Path) -> None:
    """Write the timing cache for the next build. A folder that cannot be written is not an error."""
    cache = config.get_timing_cache()
    serialized = None if cache is None else cache.serialize()
    if serialized is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, bytes(serialized))


# What TensorRT says meanwhile


@functools.cache
def process_logger(trt: Any) -> Any:
    """The process's one logger: TensorRT uses the first that it is given, and ignores all later ones."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        """Keeps errors until they are asked for, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
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
    """Tells `on_phase` of every step of the build, and ends the build where that raises, as an interrupt does."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT has no types
        """No exception may leave the methods that TensorRT calls: it would end the process."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if self._stopped_by is None:
                    on_phase(phase_name, min(1.0, (step + 1) / self._steps.get(phase_name, 1)))
            except BaseException as error:  # raised again after the build
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
