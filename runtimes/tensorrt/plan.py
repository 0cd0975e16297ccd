"""What is decided about a TensorRT engine before TensorRT is asked, and read from what it answers.

Nothing here needs TensorRT or a GPU, so a workstation can write the device's command, and every decision has a test.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from edgevit.errors import BuildError, BundleError, MissingError, UsageError
from edgevit.runtimes.base import UNKNOWN, BuildOptions, ExecutedPrecision
from edgevit.types import TensorSpec

Line: TypeAlias = Literal["8.6", "10", "11"]
Function = TypeVar("Function", bound=Callable[..., object])

ENGINE = "model.engine"
RECORD = "engine.json"
RECORD_VERSION = 1
MB = 1 << 20

# Versions


def versions(*_lines: Line) -> Callable[[Function], Function]:
    """Says which versions of TensorRT a function is written for; without it, for all.

    It does nothing. tests/runtimes/test_tensorrt_api.py holds the names that the function uses against those versions,
    and sees that a function for more of them calls it behind an `if` alone.
    """
    return lambda function: function


def supported_line(version: str) -> Line:
    """The line of a TensorRT version. Raises MissingError for one that edgevit does not build with, by name."""
    match = re.match(r"(\d+)\.(\d+)", version)
    major, minor = (int(match[1]), int(match[2])) if match else (0, 0)
    if (major, minor) == (8, 6):
        return "8.6"
    if major == 10:
        return "10"
    if major == 11:
        return "11"
    if (major, minor) < (8, 6):
        where = "JetPack 5, with Python 3.8" if (major, minor) == (8, 5) else "an older system"
        raise MissingError(
            f"TensorRT {version} belongs to {where}, and its parser has no LayerNormalization; edgevit builds with "
            "TensorRT 8.6, 10 and 11: on a Jetson Orin, install JetPack 6 or 7"
        )
    if major in (8, 9):
        raise MissingError(f"edgevit builds with TensorRT 8.6, 10 and 11, not with {version}; install tensorrt>=10.3")
    raise MissingError(
        f"TensorRT {version} is newer than what this edgevit knows (8.6, 10 and 11); install a newer edgevit, "
        "or pip install 'tensorrt<12'"
    )


# Memory

# What a build needs beside the workspace. On an idle GPU, CUDA's context and TensorRT's kernels take 500 to 600 MB.
CONTEXT_BYTES = 600 * MB
# The file, the parsed weights, the builder's copy and the engine.
COPIES_OF_MODEL = 4
LEAST_WORKSPACE = 64 * MB
MOST_WORKSPACE = 4096 * MB  # more never changed the tactics of a network of this size


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is free on the GPU and in the host; on a Jetson both are one memory."""

    device_free: int
    host_free: int
    shared: bool

    @property
    def for_device(self) -> int:
        """Of one memory the driver tells only what nobody holds, and not what the system holds as a cache of files."""
        return self.host_free if self.shared else self.device_free


def workspace_bytes(asked_mb: int | None, memory: Memory, model_bytes: int) -> int:
    """The bound of the builder's workspace: what was asked for, or half of what the rest of the build leaves free.

    Raises BuildError where the build would not fit: the system would kill it after minutes, without a word.
    """
    copies = COPIES_OF_MODEL * model_bytes
    if not memory.shared and memory.host_free < copies:
        raise BuildError(f"a build of this model needs {_mb(copies)} of memory, and {_mb(memory.host_free)} is free")
    taken = CONTEXT_BYTES + (copies if memory.shared else 2 * model_bytes)
    left = memory.for_device - taken
    wanted = LEAST_WORKSPACE if asked_mb is None else asked_mb * MB
    if left < wanted:
        raise BuildError(
            f"{_mb(memory.for_device)} of GPU memory is free, and the build needs {_mb(taken)} and a workspace of "
            f"{_mb(wanted)}; stop what else runs (on a Jetson: sudo systemctl isolate multi-user.target), add swap, "
            "or give a smaller --workspace"
        )
    return wanted if asked_mb is not None else min(max(left // 2, LEAST_WORKSPACE), MOST_WORKSPACE)


def host_free_bytes(meminfo: str) -> int:
    """What Linux can give without killing anything, from the text of /proc/meminfo."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE))
    return 1024 * (int(fields.get("MemAvailable", 0)) + int(fields.get("SwapFree", 0)))


def _mb(size: int) -> str:
    return f"{size / MB:.0f} MB"


# The batch


def profile_shapes(inputs: Sequence[TensorSpec], options: BuildOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The smallest, the most frequent and the largest shape of every dynamic input.

    Raises BuildError where graph and options disagree about the batch.
    """
    dynamic, wanted = [spec for spec in inputs if spec.is_dynamic], options.dynamic_batch
    if dynamic and wanted is None:
        raise BuildError(f"{dynamic[0]} is dynamic: give its bounds with --dynamic-batch MIN:OPT:MAX")
    if wanted is None:
        return {}
    if not dynamic:
        raise BuildError(f"the graph has a fixed batch ({inputs[0]}); export it again with --dynamic-batch {wanted}")
    sizes = (wanted.minimum, wanted.optimum, wanted.maximum)
    return {spec.name: tuple(spec.with_batch(size) for size in sizes) for spec in dynamic}


def tensor_spec(name: str, dtype: str, shape: Sequence[int]) -> TensorSpec:
    """An input or output as TensorRT tells it: its DataType's name, and -1 where a dimension is dynamic."""
    if dtype not in _NUMPY_TYPES:
        raise BuildError(f"the engine's {name} is a {dtype}, which edgevit does not feed; export it with float32 ends")
    if any(size < 0 for size in shape[1:]):
        raise BuildError(f"{name} has the shape {list(shape)}; only its first dimension, the batch, may be dynamic")
    return TensorSpec(name, _NUMPY_TYPES[dtype], tuple("batch" if size < 0 else size for size in shape))


_NUMPY_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32",
                "INT64": "int64", "BOOL": "bool"}  # fmt: skip


# What an engine is bound to


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """Where an engine was built: it runs nowhere else. It stands in engine.json, beside the engine's clean bytes."""

    tensorrt: str
    compute_capability: str
    gpu: str
    system: str  # such as Linux-aarch64

    def write(self, folder: Path, **found: Any) -> Path:
        """Writes the record into `folder`, with what else was found."""
        path = folder / RECORD
        content = {"schema_version": RECORD_VERSION, **asdict(self), **found}
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def read(cls, engine: Path) -> EngineRecord:
        """The record of the engine at `engine`. Raises BundleError where it is missing or damaged."""
        path = engine.with_name(RECORD)
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["schema_version"] != RECORD_VERSION:
                raise BundleError(f"{path} was written by another edgevit; build it again: {rebuild(engine)}")
            return cls(**{name: str(content[name]) for name in cls.__slots__})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"nothing tells what {engine} was built for ({path.name}: {type(error).__name__}), and TensorRT may "
                f"crash on an engine from elsewhere; build it here: {rebuild(engine)}"
            ) from error

    def require(self, here: EngineRecord, engine: Path) -> None:
        """Raises BuildError, with the command that builds it anew, where `here` is not where it was built."""
        names = {"tensorrt": "TensorRT", "compute_capability": "compute capability", "gpu": "GPU", "system": "system"}
        ours, theirs = asdict(here), asdict(self)
        other = [
            f"{title} {theirs[name]}, here {ours[name]}" for name, title in names.items() if theirs[name] != ours[name]
        ]
        if other:
            raise BuildError(f"{engine} was built for {'; '.join(other)}; build it here: {rebuild(engine)}")

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in asdict(self).items())


def rebuild(engine: Path) -> str:
    """The command that builds the engine of a bundle on this machine."""
    return f"edgevit build {shlex.quote(str(engine.parent))}"


# What the engine runs

_TYPES = (  # the first that occurs in TensorRT's description of a tensor
    (r"bfloat16|bf16", "bf16"),
    (r"fp16|half", "fp16"),
    (r"fp8|e4m3", "fp8"),
    (r"fp4|e2m1", "fp4"),
    (r"int4", "int4"),
    (r"u?int8", "int8"),
    (r"fp32|float", "fp32"),
)
_MULTIPLYING = re.compile(r"conv|gemm|matrix_?mul|fully_?connected|attention|mha|correlation", re.IGNORECASE)
# Kernels that TensorRT's compiler generates are called by what they do, whatever their layer's type.
_MULTIPLYING_KERNEL = re.compile(r"(?i:gemm|mha|xmma|fprop|cutlass|flash)|(Corr|Fc)(?![a-z])")
_GENERATED = frozenset({"kgen", "fusion", "runtime_fusion", "myelin", "generic"})


def executed_precision(information: str) -> ExecutedPrecision:
    """The layers that multiply, by the type they read, from the engine inspector's JSON (`DETAILED`).

    A layer whose type is not told counts as "unknown". Nothing is known of the inside of the one layer that
    TensorRT 8.6 makes of a whole transformer. Raises BuildError where the text is not the inspector's.
    """
    try:
        layers = list(json.loads(information)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"TensorRT's engine inspector did not answer with its layers ({error})") from error
    found = Counter(_precision(layer) for layer in layers if isinstance(layer, Mapping) and _multiplies(layer))
    return ExecutedPrecision(dict(found))


def _multiplies(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", ""))
    if kind.lower() in _GENERATED:
        return bool(_MULTIPLYING_KERNEL.search(f"{layer.get('TacticName', '')} {_kernel_name(layer)}"))
    return bool(_MULTIPLYING.search(f"{kind} {layer.get('ParameterType', '')}"))


def _kernel_name(layer: Mapping[str, Any]) -> str:
    """The layer's name where the compiler made it; ONNX names hold the user's own words."""
    name = str(layer.get("Name", ""))
    return name if name.startswith(("__myl", "_gemm")) else ""


def _precision(layer: Mapping[str, Any]) -> str:
    weights = layer.get("Weights")
    tensors = [*layer.get("Inputs", ())[:1], weights if isinstance(weights, Mapping) else {}, *layer.get("Outputs", ())]
    for tensor in tensors:
        told = " ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype", "DataType", "Type"))
        for pattern, name in _TYPES:
            if re.search(pattern, told, re.IGNORECASE):
                # TF32 reads fp32 and multiplies with 10 bits of mantissa; only the kernel's name tells.
                return "tf32" if name == "fp32" and "tf32" in str(layer.get("TacticName", "")).lower() else name
    return UNKNOWN


# trtexec

# In TensorRT 11 these are the default or do nothing, in 10 the reverse is: written out, both mean the same.
_SAME_IN_ALL = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun")
_MEASURE = ("--warmUp=500", "--iterations=200", "--duration=10", "--avgRuns=1", "--percentile=50,90,95,99")
_EXPORTS = (
    "--profilingVerbosity=detailed",
    "--exportTimes=times.json",
    "--exportProfile=profile.json",
    "--exportLayerInfo=layers.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSteps:
    """What is left to do on the device, where a workstation has made all of a bundle but its engine."""

    sentence: str
    build: str
    trtexec: str


def device_steps(
    bundle: Path, options: BuildOptions, version: str, *, inputs: Sequence[TensorSpec] = ()
) -> DeviceSteps:
    """The commands for the device, and the sentence that says why the bundle in `bundle` holds no engine."""
    engine = bundle / ENGINE
    return DeviceSteps(
        sentence=f"{bundle.name} holds no engine yet: TensorRT builds on the device alone; there: {rebuild(engine)}",
        build=rebuild(engine),
        # In the bundle's own folder: where that lies on the device is not known here.
        trtexec=trtexec_line(Path("model.onnx"), options, version, inputs=inputs),
    )


def trtexec_line(model: Path, options: BuildOptions, version: str, *, inputs: Sequence[TensorSpec] = ()) -> str:
    """The trtexec command that builds and times `model` on the device, meaning the same in every version.

    A dynamic batch needs `inputs`, whose shapes the command names. Raises UsageError without them, MissingError for a
    version that edgevit does not build with.
    """
    line = supported_line(version)
    precision = {"fp16": ["--fp16"], "int8": ["--int8"]}.get(options.precision, [])
    command = [
        "trtexec",
        f"--onnx={model}",
        # From 10 on, the precision stands in the graph.
        *(precision if line == "8.6" else ["--stronglyTyped"]),
        *(["--noTF32"] if options.precision == "fp32" else []),
        *_shape_flags(options, inputs),
        *([f"--memPoolSize=workspace:{options.workspace_mb}M"] if options.workspace_mb else []),
        *_SAME_IN_ALL,
        *_MEASURE,
        *_EXPORTS,
        f"--timingCacheFile={model.with_suffix('.timing')}",
        f"--saveEngine={model.with_name(ENGINE)}",
    ]
    return shlex.join(command)


def _shape_flags(options: BuildOptions, inputs: Sequence[TensorSpec]) -> list[str]:
    if options.dynamic_batch is None:
        return []
    if not any(spec.is_dynamic for spec in inputs):
        raise UsageError("a dynamic batch needs the graph's dynamic inputs: trtexec_line(..., inputs=graph.inputs)")
    shapes = profile_shapes(inputs, options)
    flags = []
    for flag, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2), ("--shapes", 1)):
        named = (f"{name}:{'x'.join(str(size) for size in shape[index])}" for name, shape in shapes.items())
        flags.append(f"{flag}={','.join(named)}")
    return flags
