"""Build a serialized engine from an ONNX file with TensorRT 8.6, 10 or 11.

From TensorRT 10 on, the graph's types are the precision and the network is strongly typed; 8.6 has builder flags
instead. Code for some versions only takes the module's type for these versions (versions.py): mypy reports a call that
is not behind `is_86` or `is_10`. TensorRT reports a failure by None, False or an empty list, so each result is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from edgevit.errors import BuildError
from edgevit.files import write_atomically
from edgevit.runtimes.base import BatchRange, BuildOptions, OnPhase
from edgevit.runtimes.tensorrt import api
from edgevit.runtimes.tensorrt.log import failure, load_plugins, process_logger, version_name
from edgevit.runtimes.tensorrt.record import EngineRecord
from edgevit.runtimes.tensorrt.shapes import profile_shapes, tensor_spec
from edgevit.runtimes.tensorrt.versions import TensorRtModule, TensorRtModule10, TensorRtModule86, is_10, is_86
from edgevit.types import Precision, TensorSpec


def build_serialized_engine(
    trt: TensorRtModule,
    model: Path,
    options: BuildOptions,
    record: EngineRecord,
    *,
    workspace: int,
    on_phase: OnPhase | None,
) -> bytes:
    """Return the engine of the ONNX file `model`, with a workspace of at most `workspace` bytes.

    Raises BuildError with TensorRT's own message if it fails.
    """
    logger = process_logger(trt)
    logger.take()  # errors logged before this build
    monitor = None
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(_network_flags(trt))
        _parse(trt, network, model)
        config = _configure(trt, builder, options.precision, workspace)
        _add_profile(trt, builder, config, _inputs(network), options.dynamic_batch)
        if is_86(trt):
            _allow_precision(trt, config, network, options.precision)
        cache_file = _cache_file(options.cache_dir, record)
        if cache_file is not None:
            _use_timing_cache(trt, config, cache_file)
        if is_10(trt) and on_phase is not None:
            monitor = _watch(trt, config, on_phase)
        serialized = builder.build_serialized_network(network, config)
    except (RuntimeError, TypeError, ValueError) as error:  # pybind11 raises TypeError for a null pointer
        raise failure(trt, "the builder stopped", str(error)) from error
    if monitor is not None:
        monitor.reraise()
    if serialized is None:
        raise failure(trt, "the build returned no engine")
    if cache_file is not None:
        _keep_timing_cache(config, cache_file)
    return bytes(serialized)


# The network


def _network_flags(trt: TensorRtModule) -> int:
    if is_86(trt):
        return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if is_10(trt):  # TensorRT 11 accepts the flag, and knows no other networks
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _parse(trt: TensorRtModule, network: api.INetworkDefinition, model: Path) -> None:
    logger = process_logger(trt)
    load_plugins(trt)
    logger.parsing = ("", "")
    parser = trt.OnnxParser(network, logger)
    if is_86(trt):
        # A layer for InstanceNormalization, the default from 10 on; 8.6 takes a plugin, which fuses with nothing.
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse_from_file(str(model)):
        errors = [_error_text(trt, parser.get_error(index)) for index in range(parser.num_errors)]
        remedy = f"export for this TensorRT with --trt-version {version_name(trt)}, which names what is not supported"
        raise failure(trt, f"its parser cannot read {model.name}", *errors, remedy=remedy)
    if not network.num_outputs:  # the parser reads any file as an empty model
        raise BuildError(f"{model.name} is not an ONNX model, or it is damaged; export it again")


def _error_text(trt: TensorRtModule, error: api.ParserError) -> str:
    if not is_10(trt):
        return f"{error.desc()} (node {error.node()})"
    named = cast(api.ParserError10, error)
    node = (named.node_name(), named.node_operator()) if named.node_name() else process_logger(trt).parsing
    return f"{named.desc()} (node {', '.join(node)})" if any(node) else named.desc()


def _inputs(network: api.INetworkDefinition) -> tuple[TensorSpec, ...]:
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    return tuple(tensor_spec(tensor.name, tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors)


# The configuration


def _configure(trt: TensorRtModule, builder: api.Builder, precision: Precision, workspace: int) -> api.IBuilderConfig:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the inspector reports names only
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) != workspace:
        raise BuildError(f"TensorRT does not accept a workspace of {workspace} bytes; set another --workspace")
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it multiplies fp32 with a 10-bit mantissa
    return config


def _add_profile(
    trt: TensorRtModule,
    builder: api.Builder,
    config: api.IBuilderConfig,
    inputs: Sequence[TensorSpec],
    batches: BatchRange | None,
) -> None:
    shapes = profile_shapes(inputs, batches)
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, (smallest, optimum, largest) in shapes.items():
        profile.set_shape(name, smallest, optimum, largest)
    if config.add_optimization_profile(profile) < 0:
        raise failure(trt, f"the dynamic batch {batches} is not a valid profile")


def _allow_precision(
    trt: TensorRtModule86, config: api.IBuilderConfig, network: api.INetworkDefinition, precision: Precision
) -> None:
    """Allow lower precision. Networks of 8.6 are weakly typed: the graph's types do not set the precision."""
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    half = trt.DataType.HALF
    if precision == "fp16" or any(tensor.dtype == half for layer in layers for tensor in _outputs(layer)):
        config.set_flag(trt.BuilderFlag.FP16)
    if precision == "fp16":
        _keep_fp32_layers(trt, config, layers)


def _keep_fp32_layers(trt: TensorRtModule86, config: api.IBuilderConfig, layers: Sequence[api.ILayer]) -> None:
    """Run the layers that are fp32 in the graph in fp32: the builder may use every allowed precision for any layer.

    No layer is constrained if the network's types do not follow from the graph's, which only a Cast changes.
    """
    fp32, half = trt.DataType.FLOAT, trt.DataType.HALF
    kept = []
    for layer in layers:
        if layer.type in (trt.LayerType.CAST, trt.LayerType.CONSTANT):
            continue
        outputs = _outputs(layer)
        if outputs and all(tensor.dtype == fp32 and tensor.is_execution_tensor for tensor in outputs):
            if any(tensor.dtype == half for tensor in _inputs_of(layer)):
                return
            kept.append(cast(api.ILayer86, layer))
    for constrained in kept:
        constrained.precision = fp32
        for index in range(constrained.num_outputs):
            constrained.set_output_type(index, fp32)
    if kept:
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)  # OBEY fails where no kernel has the precision


def _inputs_of(layer: api.ILayer) -> list[api.ITensor]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(layer: api.ILayer) -> list[api.ITensor]:
    tensors = (layer.get_output(index) for index in range(layer.num_outputs))
    return [tensor for tensor in tensors if tensor is not None]


# The timing cache


def _cache_file(cache_dir: Path | None, record: EngineRecord) -> Path | None:
    """Return the timing cache for this version and device; None without a folder for it."""
    return None if cache_dir is None else cache_dir / f"{record.timing_key}.timing"


def _use_timing_cache(trt: TensorRtModule, config: api.IBuilderConfig, file: Path) -> None:
    """Start from the timings of earlier builds, or from none if the file is damaged or of another device."""
    content = b""
    with contextlib.suppress(OSError):  # absent, or another user's
        content = file.read_bytes()
    for candidate in (content, b""):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            process_logger(trt).take()
            return
    raise failure(trt, "it accepts no timing cache, not even an empty one")


def _keep_timing_cache(config: api.IBuilderConfig, file: Path) -> None:
    """Save the timings for the next build. If they cannot be written, the next build takes longer."""
    cache = config.get_timing_cache()
    serialized = None if cache is None else cache.serialize()
    if serialized is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, bytes(serialized))


# Progress


class Monitor(api.IProgressMonitor10, Protocol):
    """A progress monitor that keeps the exception which stopped the build."""

    def reraise(self) -> None:
        """Raise that exception, if there is one."""


def _watch(trt: TensorRtModule10, config: api.IBuilderConfig, on_phase: OnPhase) -> Monitor:
    """Call `on_phase` after each step of the build; an exception it raises, such as an interrupt, stops the build."""

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
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

        def reraise(self) -> None:
            if self._stopped_by is not None:
                raise self._stopped_by

    monitor: Monitor = ProgressMonitor()
    cast(api.IBuilderConfig10, config).progress_monitor = monitor
    return monitor
