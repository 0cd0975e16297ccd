"""Types for the part of TensorRT's Python API that edgevit uses; TensorRT ships none.

Each protocol has the name of TensorRT's class. It has the members that all supported versions have, TensorRT-RTX
included; a suffix marks members of some versions only: `86` for TensorRT 8.6, `10` for 10 and newer, `Rtx` for
TensorRT-RTX. To use another name of TensorRT's, add it here; tests/runtimes/tensorrt/test_api.py then checks it against
the API of each version (tensorrt_api.tsv). The types of the modules themselves are in versions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Enumerator(Protocol):
    """A member of one of TensorRT's enumerations. Its number differs between versions; its name does not."""

    @property
    def name(self) -> str: ...
    def __int__(self) -> int: ...


class ILogger(Protocol):
    ERROR: Enumerator
    INTERNAL_ERROR: Enumerator
    WARNING: Enumerator

    def log(self, severity: Enumerator, msg: str, /) -> None: ...


# Building


class Builder(Protocol):
    def create_network(self, flags: int, /) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig, /) -> Any: ...


class INetworkDefinition(Protocol):
    num_inputs: int
    num_outputs: int
    num_layers: int

    def get_input(self, index: int, /) -> ITensor: ...
    def get_layer(self, index: int, /) -> ILayer: ...


class ITensor(Protocol):
    name: str
    dtype: Enumerator
    shape: Sequence[int]
    is_execution_tensor: bool


class ILayer(Protocol):
    name: str
    type: Enumerator
    num_inputs: int
    num_outputs: int

    def get_input(self, index: int, /) -> ITensor | None: ...
    def get_output(self, index: int, /) -> ITensor | None: ...


class ILayer86(ILayer, Protocol):
    precision: Enumerator

    def set_output_type(self, index: int, dtype: Enumerator, /) -> None: ...


class INormalizationLayer(ILayer, Protocol):
    axes: int
    num_groups: int


class IBuilderConfig(Protocol):
    profiling_verbosity: Enumerator

    def set_flag(self, flag: Enumerator, /) -> None: ...
    def clear_flag(self, flag: Enumerator, /) -> None: ...
    def set_memory_pool_limit(self, pool: Enumerator, size: int, /) -> None: ...
    def get_memory_pool_limit(self, pool: Enumerator, /) -> int: ...
    def add_optimization_profile(self, profile: IOptimizationProfile, /) -> int: ...
    def create_timing_cache(self, content: bytes, /) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...  # noqa: FBT001
    def get_timing_cache(self) -> ITimingCache | None: ...


class IBuilderConfig10(IBuilderConfig, Protocol):
    progress_monitor: IProgressMonitor10


class IBuilderConfigRtx(IBuilderConfig, Protocol):
    num_compute_capabilities: int

    def set_compute_capability(self, capability: Enumerator, index: int, /) -> bool: ...


class IProgressMonitor10(Protocol):
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int, /) -> None: ...
    def step_complete(self, phase_name: str, step: int, /) -> bool: ...
    def phase_finish(self, phase_name: str, /) -> None: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, name: str, /, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...  # noqa: A002


class ITimingCache(Protocol):
    def serialize(self) -> Any: ...


class OnnxParser(Protocol):
    num_errors: int

    def parse_from_file(self, path: str, /) -> bool: ...
    def get_error(self, index: int, /) -> ParserError: ...
    def set_flag(self, flag: Enumerator, /) -> None: ...


class ParserError(Protocol):
    def desc(self) -> str: ...
    def node(self) -> int: ...


class ParserError10(ParserError, Protocol):  # noqa: N818
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


# Running


class Runtime(Protocol):
    def deserialize_cuda_engine(self, content: bytes, /) -> ICudaEngine | None: ...


class ICudaEngine(Protocol):
    num_io_tensors: int

    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> Enumerator: ...
    def get_tensor_dtype(self, name: str, /) -> Enumerator: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile: int, /) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> IExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector | None: ...


class IExecutionContext(Protocol):
    profiler: object  # an IProfiler

    def set_input_shape(self, name: str, shape: Sequence[int], /) -> bool: ...
    def infer_shapes(self) -> Sequence[str]: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...


class EngineInspector(Protocol):
    execution_context: IExecutionContext

    def get_engine_information(self, form: Enumerator, /) -> str: ...


# Enumerations


class BuilderFlag(Protocol):
    TF32: Enumerator


class BuilderFlag86(BuilderFlag, Protocol):
    FP16: Enumerator
    INT8: Enumerator
    PREFER_PRECISION_CONSTRAINTS: Enumerator


class DataType(Protocol):
    FLOAT: Enumerator
    HALF: Enumerator


class LayerInformationFormat(Protocol):
    JSON: Enumerator


class LayerType(Protocol):
    CAST: Enumerator
    CONSTANT: Enumerator
    NORMALIZATION: Enumerator


class MemoryPoolType(Protocol):
    WORKSPACE: Enumerator


class NetworkDefinitionCreationFlag86(Protocol):
    EXPLICIT_BATCH: Enumerator


class NetworkDefinitionCreationFlag10(Protocol):
    STRONGLY_TYPED: Enumerator


class OnnxParserFlag(Protocol):
    NATIVE_INSTANCENORM: Enumerator


class ProfilingVerbosity(Protocol):
    DETAILED: Enumerator


class TensorIOMode(Protocol):
    INPUT: Enumerator


BuilderFactory = Callable[[ILogger], Builder]
ParserFactory = Callable[[INetworkDefinition, ILogger], OnnxParser]
RuntimeFactory = Callable[[ILogger], Runtime]
PluginLoader = Callable[[ILogger, str], bool]
