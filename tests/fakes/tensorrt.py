"""A stand-in for one version of TensorRT and for a GPU: its names are that version's, and its engines double numbers.

Every class and method that the version's API lacks, by `tensorrt_api.tsv`, is taken out, so code for another version
fails here as it would there. `World` says what is to go wrong, and keeps what was asked for.
"""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from edgevit.runtimes import subprocess_build as child
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.subprocess_build import Json
from edgevit.runtimes.tensorrt import cuda, cuda_graph, worker
from edgevit.runtimes.tensorrt.cuda_graph import PinnedMemory
from edgevit.types import Array
from tests.runtimes.tensorrt.test_api import matrix

# The version that TensorRT calls itself, by the matrix's name for it.
VERSIONS = {
    "cu12_8.6.1": "8.6.1",
    "cu12_10.3.0": "10.3.0",
    "cu13_10.16.1.11": "10.16.1.11",
    "cu13_11.4.0.106": "11.4.0",
}
PARTS = ("fp32", "fp16", "int8")
WORDS = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}


@dataclass
class World:
    """What the stand-in is to do, and what was done to it."""

    runs: str = "fp32"  # the precision that its engines tell
    shape: tuple[int, ...] = (1, 4)
    layer_types: tuple[str, ...] = ("FLOAT",)  # of the parsed network
    broken: str = ""  # the step that fails, as TensorRT fails: without an exception
    raising: str = ""  # the step that pybind11 makes a TypeError of
    steps: int = 3  # of a build
    dies: int = 0  # the signal that ends the process in the middle of a build
    cached: bytes = b"timings"
    capturable: bool = True
    integrated: bool = False
    free: int = 8 << 30
    calls: list[str] = field(default_factory=list)
    buffers: dict[int, bytearray] = field(default_factory=dict)
    pinned: int = 0
    devices: int = 0
    captured: int = 0
    launched: int = 0


def stand_ins(world: World) -> list[tuple[Any, str, Any]]:
    """What stands in for the GPU: the module, the name in it, and the value."""
    return [
        (cuda, "Device", lambda: FakeDevice(world)),
        (cuda_graph, "PinnedMemory", FakePinned),
        (cuda_graph, "capture", fake_capture),
        (cuda_graph, "free_memory", lambda device: device.world.free),
        (cuda_graph, "shares_memory", lambda device: device.world.integrated),
    ]


# The text of a module `tensorrt` for a child process, which puts the stand-in in its own place.
MODULE = """
from tests.fakes.tensorrt import World, install
install({column!r}, World(**{world!r}))
"""


def install(column: str, world: World) -> None:
    """TensorRT and a GPU for the whole of this process."""
    sys.modules["tensorrt"] = fake_tensorrt(column, world)
    for module, name, value in stand_ins(world):
        setattr(module, name, value)


def run_here(_job: child.Job, request: Json, folder: Path, *, on_phase: OnPhase | None = None) -> Json:
    """`child.run` in this process, for the builder's sake; what travels is JSON all the same."""
    report = worker.work(json.loads(json.dumps(request)), folder, on_phase or (lambda *_: None))
    answer: Json = json.loads(json.dumps(report))
    return answer


def fake_tensorrt(column: str, world: World) -> ModuleType:
    """The module of the version that the matrix calls `column`."""
    has = {name for name, versions in matrix().items() if versions[column]}
    module: Any = ModuleType("tensorrt")
    module.__version__ = VERSIONS[column]
    members: dict[str, dict[str, int]] = {}
    for name in sorted(has):
        owner, _, member = name.rpartition(".")
        if owner in ENUMS and member.isupper():
            members.setdefault(owner, {})[member] = len(members.get(owner, {}))
    if "STRONGLY_TYPED" in members["NetworkDefinitionCreationFlag"]:  # its number has changed
        number = 0 if VERSIONS[column].startswith("11") else 1
        members["NetworkDefinitionCreationFlag"] = {"STRONGLY_TYPED": number}
        if number:
            members["NetworkDefinitionCreationFlag"]["EXPLICIT_BATCH"] = 0
    members["DataType"] |= {"FLOAT": 90, "INT8": 91}
    for enumeration, names in members.items():
        setattr(module, enumeration, enum.IntEnum(enumeration, names))
    for title, cls in _classes(module, world).items():
        if title in has or title not in matrix():
            setattr(module, title, _restricted(title, cls, has))
    return module  # type: ignore[no-any-return]


def _restricted(title: str, cls: type, has: set[str]) -> type:
    """A class without the methods that the version has not."""
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(title, (), {name: own[name] for name in own if name.startswith("_") or f"{title}.{name}" in has})


ENUMS = frozenset({
    "BuilderFlag", "DataType", "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",     "ProfilingVerbosity", "TensorIOMode",
})  # fmt: skip


def _classes(trt: Any, world: World) -> dict[str, type]:  # noqa: C901  # one class after another
    """The classes of all versions."""

    def fails(step: str) -> bool:
        if world.raising == step:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        if world.broken != step:
            return False
        world.logger.log(trt.ILogger.ERROR, f"{step} is broken")  # type: ignore[attr-defined]
        return True

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

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
        num_inputs, num_layers = 1, 1

        @property
        def num_outputs(self) -> int:
            return 0 if world.broken == "empty" else 1

        def get_input(self, index: int) -> Any:
            return trt.ITensor("x", trt.DataType.FLOAT, world.shape)

        def get_layer(self, index: int) -> Any:
            return trt.ILayer()

    class ILayer:
        @property
        def num_outputs(self) -> int:
            return len(world.layer_types)

        def get_output(self, index: int) -> Any:
            return trt.ITensor("y", getattr(trt.DataType, world.layer_types[index]), world.shape)

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
            return Path(path).exists() and not fails("parser")

        def get_error(self, index: int) -> Any:
            return trt.ParserError()

    class ParserError:
        def desc(self) -> str:
            return "Unsupported operator"

        def node(self) -> int:
            return 3

        def node_name(self) -> str:
            return "blocks.0.attn/Einsum"

        def node_operator(self) -> str:
            return "Einsum"

    class Runtime:
        def __init__(self, logger: Any) -> None:
            world.logger = logger  # type: ignore[attr-defined]
            fails("runtime")

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            good = content.startswith(b"vplan") and not fails("engine")
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
            return stream == 7 and not fails("execute")

    class EngineInspector:
        def __init__(self, plan: dict[str, str]) -> None:
            self._plan = plan
            vars(self)["execution_context"] = None

        def get_engine_information(self, form: Any) -> str:
            told = WORDS[self._plan["runs"]]
            layers = [{"Name": "fc", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": told}]}]
            return json.dumps({"Layers": layers}) if self.execution_context is not None else "{}"  # type: ignore[attr-defined]

    return {name: cls for name, cls in locals().items() if isinstance(cls, type)}


# The GPU


class FakeDevice:
    """A GPU of compute capability 8.7 whose stream runs at once."""

    stream = 7

    def __init__(self, world: World) -> None:
        self.world, self.name, self.compute_capability = world, "Orin", 87
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


class FakePinned(PinnedMemory):
    """The real class on ordinary memory."""

    def __init__(self, device: Any, size_bytes: int) -> None:
        self._world: World = device.world
        self._world.pinned += 1
        self._bytes = np.zeros(size_bytes, np.uint8)

    def free(self) -> None:
        self._world.pinned -= 1


def fake_capture(device: FakeDevice, work: Callable[[], None]) -> Any:
    """Keeps the work itself, in place of a record of it."""
    if not device.world.capturable:
        return None
    device.world.captured += 1

    def launch() -> None:
        device.world.launched += 1
        work()

    def free() -> None:
        device.world.captured -= 1

    return SimpleNamespace(launch=launch, free=free)
