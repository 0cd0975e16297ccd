"""Fake TensorRT for one API version, and a fake GPU.

The fake has only the classes and methods of one version, from `tensorrt_api.tsv`, so code written for another version
fails as it does with the real package. Its engines double their input. `World` selects the step that fails, and records
the calls.
"""

from __future__ import annotations

import csv
import enum
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.subprocess_build import Json
from edgevit.runtimes.tensorrt import cuda, cuda_graph, worker
from edgevit.runtimes.tensorrt.cuda_graph import PinnedMemory
from edgevit.types import Array

API_TABLE = Path(__file__).parents[1] / "runtimes" / "tensorrt" / "tensorrt_api.tsv"
# TensorRT's `__version__`, by the column of the table.
VERSIONS = {
    "cu12_8.6.1": "8.6.1",
    "cu12_10.3.0": "10.3.0",
    "cu13_10.16.1.11": "10.16.1.11",
    "cu13_11.4.0.106": "11.4.0",
}
RTX = "rtx_1.7.1.116"
PARTS = ("fp32", "fp16", "int8")
WORDS = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}


@dataclass(frozen=True)
class Layer:
    """A layer of a parsed network: its kind, and the types of its inputs and outputs; "SHAPE" for a shape tensor."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class World:
    """Settings of the fake, and a record of the calls."""

    runs: str = "fp32"  # the precision that its engines report
    shape: tuple[int, ...] = (1, 4)
    layers: tuple[Layer, ...] = (Layer("MATRIX_MULTIPLY", ("FLOAT",), ("FLOAT",)),)  # of the parsed network
    broken: str = ""  # the step that fails as TensorRT does: without an exception
    raising: str = ""  # the step that raises TypeError, as pybind11 does for a null pointer
    steps: int = 3  # of a build
    warning: str = ""  # logged when an engine is loaded
    names_nodes: bool = True  # in the errors of the parser
    dies: int = 0  # the signal that kills the process during a build
    cached: bytes = b"timings"
    capturable: bool = True
    integrated: bool = False
    free: int = 8 << 30
    calls: list[str] = field(default_factory=list)
    buffers: dict[int, bytearray] = field(default_factory=dict)
    pinned: int = 0
    devices: int = 0
    stopwatches: int = 0
    captured: int = 0
    launched: int = 0


def fake_gpu(world: World) -> list[tuple[Any, str, Any]]:
    """Return the replacements for the GPU: module, name in the module, and fake."""
    return [
        (cuda, "Device", lambda: FakeDevice(world)),
        (cuda_graph, "PinnedMemory", FakePinned),
        (cuda_graph, "Stopwatch", FakeStopwatch),
        (cuda_graph, "capture", fake_capture),
        (cuda_graph, "free_memory", lambda device: device.world.free),
        (cuda_graph, "shares_memory", lambda device: device.world.integrated),
    ]


# Source of a module `tensorrt` for a subprocess, which replaces itself by the fake.
MODULE = """
from tests.fakes.tensorrt import World, install
install({column!r}, World(**{world!r}))
"""


def install(column: str, world: World) -> None:
    """Install the fake TensorRT and the fake GPU in this process."""
    sys.modules["tensorrt"] = fake_tensorrt(column, world)
    for module, name, value in fake_gpu(world):
        setattr(module, name, value)


def run_here(_job: subprocess_build.Job, request: Json, folder: Path, *, on_phase: OnPhase | None = None) -> Json:
    """`subprocess_build.run` in this process; request and report still pass through JSON."""
    report = worker.work(json.loads(json.dumps(request)), folder, on_phase or (lambda *_: None))
    answer: Json = json.loads(json.dumps(report))
    return answer


@cache
def api_table() -> dict[str, dict[str, bool]]:
    """The API table: name -> version -> whether that version has it."""
    with API_TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row.pop("name"): {version: mark == "x" for version, mark in row.items()} for row in rows}


def fake_tensorrt(column: str, world: World) -> ModuleType:
    """Return a fake module `tensorrt` of the version in a column of the table."""
    has = {name for name, versions in api_table().items() if versions[column]}
    module: Any = ModuleType("tensorrt")
    module.__version__ = version = column.removeprefix("rtx_") if column == RTX else VERSIONS[column]
    members: dict[str, dict[str, int]] = {}
    for name in sorted(has):
        owner, _, member = name.rpartition(".")
        if owner in ENUMS and member.isupper():
            members.setdefault(owner, {})[member] = len(members.get(owner, {}))
    if "STRONGLY_TYPED" in members["NetworkDefinitionCreationFlag"]:  # its number differs
        number = 0 if version.startswith("11") else 1
        members["NetworkDefinitionCreationFlag"] = {"STRONGLY_TYPED": number}
        if number:
            members["NetworkDefinitionCreationFlag"]["EXPLICIT_BATCH"] = 0
    members["DataType"] |= {"FLOAT": 90, "INT8": 91}
    for enumeration, names in members.items():
        setattr(module, enumeration, enum.IntEnum(enumeration, names))
    module.init_libnvinfer_plugins = lambda _logger, namespace: world.calls.append(f"plugins {namespace!r}")
    for title, cls in _classes(module, world).items():
        if title in has or title not in api_table():
            setattr(module, title, _restricted(title, cls, has))
    return module  # type: ignore[no-any-return]


def _restricted(title: str, cls: type, has: set[str]) -> type:
    """Return the class without the methods that the version lacks."""
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(title, (), {name: own[name] for name in own if name.startswith("_") or f"{title}.{name}" in has})


ENUMS = frozenset({
    "BuilderFlag", "DataType", "LayerInformationFormat", "LayerType", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParserFlag", "ProfilingVerbosity", "TensorIOMode",
})  # fmt: skip


def _classes(trt: Any, world: World) -> dict[str, type]:  # noqa: C901  # one class after another
    """Return the classes of all versions, by name."""

    def fails(step: str) -> bool:
        if world.raising == step:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        if world.broken != step:
            return False
        world.logger.log(trt.ILogger.ERROR, f"{step} is broken")  # type: ignore[attr-defined]
        return True

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            raise NotImplementedError

        def step_complete(self, phase_name: str, step: int) -> bool:
            raise NotImplementedError

        def phase_finish(self, phase_name: str) -> None:
            raise NotImplementedError

    class Builder:
        def __init__(self, logger: Any) -> None:
            world.logger = logger  # type: ignore[attr-defined]
            fails("builder")

        def create_network(self, flags: int) -> Any:
            world.calls.append(f"network {flags}")
            return trt.INetworkDefinition()

        def create_builder_config(self) -> Any:
            return trt.IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return trt.IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            monitor = vars(config).get("progress_monitor")
            if monitor is not None:
                monitor.phase_start("Building", None, world.steps)
                going = all(monitor.step_complete("Building", step) for step in range(world.steps))
                monitor.phase_finish("Building")
                if not going:
                    return None
            if world.dies:
                os.kill(os.getpid(), world.dies)
            world.calls.append(f"verbosity {config.profiling_verbosity.name}")
            return None if fails("build") else b"vplan" + json.dumps({"runs": world.runs}).encode()

    class INetworkDefinition:
        num_inputs = 1

        @property
        def num_layers(self) -> int:
            return len(world.layers)

        @property
        def num_outputs(self) -> int:
            return 0 if world.broken == "empty" else 1

        def get_input(self, index: int) -> Any:
            return trt.ITensor("x", trt.DataType.FLOAT, world.shape)

        def get_layer(self, index: int) -> Any:
            return trt.ILayer(index)

    class ILayer:
        def __init__(self, number: int) -> None:
            vars(self).update(_number=number, _layer=world.layers[number])

        @property
        def type(self) -> Any:
            return getattr(trt.LayerType, self._layer.kind, None)  # type: ignore[attr-defined]

        @property
        def num_inputs(self) -> int:
            return len(self._layer.inputs)  # type: ignore[attr-defined]

        @property
        def num_outputs(self) -> int:
            return len(self._layer.outputs)  # type: ignore[attr-defined]

        def get_input(self, index: int) -> Any:
            return tensor(self._layer.inputs[index])  # type: ignore[attr-defined]

        def get_output(self, index: int) -> Any:
            return tensor(self._layer.outputs[index])  # type: ignore[attr-defined]

        def set_output_type(self, index: int, dtype: Any) -> None:
            world.calls.append(f"layer {self._number} output {index} {dtype.name}")  # type: ignore[attr-defined]

        def _set_precision(self, dtype: Any) -> None:
            world.calls.append(f"layer {self._number} {dtype.name}")  # type: ignore[attr-defined]

        precision = property(fset=_set_precision)

    def tensor(dtype: str) -> Any:
        is_shape = dtype == "SHAPE"
        found = trt.ITensor("y", trt.DataType.FLOAT if is_shape else getattr(trt.DataType, dtype), world.shape)
        found.is_execution_tensor = not is_shape
        return found

    class ITensor:
        def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
            vars(self).update(name=name, dtype=dtype, shape=shape)

    class IBuilderConfig:
        def set_flag(self, flag: Any) -> None:
            world.calls.append(f"set {flag.name}")

        def clear_flag(self, flag: Any) -> None:
            world.calls.append(f"clear {flag.name}")

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self._limit = 0 if fails("workspace") else size

        def get_memory_pool_limit(self, pool: Any) -> int:
            return self._limit

        def add_optimization_profile(self, profile: Any) -> int:
            return -1 if fails("profile") else 0

        def create_timing_cache(self, content: bytes) -> Any:
            world.calls.append(f"cache {content.decode()}")
            return trt.ITimingCache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            return not fails("cache") and cache._content != b"damaged"

        def get_timing_cache(self) -> Any:
            return trt.ITimingCache(world.cached)

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content

    class IOptimizationProfile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            world.calls.append(f"shape {name} {[shape[0] for shape in shapes]}")

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: Any, logger: Any) -> None:
            pass

        def set_flag(self, flag: Any) -> None:
            world.calls.append(f"parser {flag.name}")

        def parse_from_file(self, path: str) -> bool:
            world.calls.append("parse")
            world.logger.log("verbose", "Parsing node: stem/Relu [Relu]")  # type: ignore[attr-defined]
            world.logger.log("verbose", "Parsing node: blocks.0.attn/Einsum [Einsum]")  # type: ignore[attr-defined]
            return Path(path).exists() and not fails("parser")

        def get_error(self, index: int) -> Any:
            return trt.ParserError()

    class ParserError:
        def desc(self) -> str:
            return "Unsupported operator"

        def node(self) -> int:
            return 3

        def node_name(self) -> str:
            return "blocks.0.attn/Einsum" if world.names_nodes else ""

        def node_operator(self) -> str:
            return "Einsum" if world.names_nodes else ""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            world.logger = logger  # type: ignore[attr-defined]
            fails("runtime")

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            world.calls.append("deserialize")
            good = content.startswith(b"vplan") and not fails("engine")
            if world.warning:
                world.logger.log(trt.ILogger.WARNING, world.warning)  # type: ignore[attr-defined]
            return trt.ICudaEngine(json.loads(content[5:])) if good else None

    class ICudaEngine:
        num_io_tensors = 2

        def __init__(self, plan: dict[str, str]) -> None:
            self._plan = plan

        def get_tensor_name(self, index: int) -> str:
            return ("x", "y")[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == "x" else "output"

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType.FLOAT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return world.shape

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(size, *world.shape[1:]) for size in (1, 2, 8)]

        device_memory_size = device_memory_size_v2 = 3 << 20

        def create_execution_context(self) -> Any:
            return None if fails("context") else trt.IExecutionContext()

        def create_engine_inspector(self) -> Any:
            return None if fails("inspector") else trt.EngineInspector(self._plan)

    class IExecutionContext:
        def __init__(self) -> None:
            self._batch = world.shape[0]
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._batch = shape[0]
            return not fails("shape")

        def infer_shapes(self) -> list[str]:
            if world.raising == "infer":
                raise RuntimeError("shapes do not agree")
            return ["y"] if fails("infer") else []

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = (self._batch, *world.shape[1:])
            return (-1, *shape[1:]) if name == "y" and world.broken == "data-dependent" else shape

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return not fails("address")

        def execute_async_v3(self, stream: int) -> bool:
            size = 4 * self._batch * int(np.prod(world.shape[1:]))
            given = np.frombuffer(bytes(world.buffers[self._addresses["x"]][:size]), np.float32)
            world.buffers[self._addresses["y"]][:size] = (2 * given).tobytes()
            profiler = vars(self).get("profiler")
            if profiler is not None:
                profiler.report_layer_time("fc", 0.25)
                profiler.report_layer_time("blocks.0/Add + blocks.0.act/Relu", 0.5)
            return stream == 7 and not fails("execute")

    class IProfiler:
        def __init__(self) -> None:
            self._started = True

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    class EngineInspector:
        def __init__(self, plan: dict[str, str]) -> None:
            self._plan = plan
            vars(self)["execution_context"] = None

        def get_engine_information(self, form: Any) -> str:
            description = WORDS[self._plan["runs"]]
            layers = [{"Name": "fc", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": description}]}]
            return json.dumps({"Layers": layers}) if self.execution_context is not None else "{}"  # type: ignore[attr-defined]

    return {name: cls for name, cls in locals().items() if isinstance(cls, type)}


# The GPU


class FakeDevice:
    """A GPU of compute capability 8.7 whose stream runs immediately."""

    stream, cpu_wait = 7, "spin"

    def __init__(self, world: World) -> None:
        self.world, self.name, self.compute_capability = world, "Orin", 87
        self.multiprocessors, self.memory_bytes, self.uuid = 16, 61 << 30, "2f2c4b1e-0000-4000-8000-00000000000a"
        world.devices += 1

    def activate(self) -> None: ...

    def synchronize(self) -> None: ...

    def allocate(self, size_bytes: int) -> FakeBuffer:
        return FakeBuffer(self.world, size_bytes)

    def close(self) -> None:
        self.world.devices -= 1

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FakeBuffer:
    def __init__(self, world: World, size_bytes: int) -> None:
        self.world, self.address = world, 1 + max(world.buffers, default=0)
        world.buffers[self.address] = bytearray(size_bytes)

    def upload(self, array: Array) -> None:
        self.world.buffers[self.address][: array.nbytes] = array.tobytes()

    def download(self, array: Array) -> None:
        kept = bytes(self.world.buffers[self.address][: array.nbytes])
        np.copyto(array, np.frombuffer(kept, array.dtype).reshape(array.shape))

    def free(self) -> None:
        del self.world.buffers[self.address]


class FakeStopwatch:
    """A stopwatch that needs half a millisecond for the first inference, and one more for each later one."""

    def __init__(self, device: Any) -> None:
        self._world: World = device.world
        self._world.stopwatches += 1
        self._stopped = 0

    def start(self) -> None: ...

    def stop(self) -> None:
        self._stopped += 1

    def elapsed_ms(self) -> float:
        return self._stopped - 0.5

    def free(self) -> None:
        self._world.stopwatches -= 1


class FakePinned(PinnedMemory):
    """PinnedMemory on ordinary memory."""

    def __init__(self, device: Any, size_bytes: int) -> None:
        self._world: World = device.world
        self._world.pinned += 1
        self._bytes = np.zeros(size_bytes, np.uint8)

    def free(self) -> None:
        self._world.pinned -= 1


def fake_capture(device: FakeDevice, work: Callable[[], None]) -> Any:
    """Keep the work itself instead of a recording of it."""
    if not device.world.capturable:
        raise BuildError("CUDA error: operation not permitted when stream is capturing (900)")
    device.world.captured += 1

    def launch() -> None:
        device.world.launched += 1
        work()

    def free() -> None:
        device.world.captured -= 1

    return SimpleNamespace(launch=launch, free=free)
