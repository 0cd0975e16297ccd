"""trtexec commands: one that builds and times an ONNX file, one that times the bundle's engine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import UsageError
from edgevit.files import MODEL_FILE
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.tensorrt.record import ENGINE_FILE, build_command
from edgevit.runtimes.tensorrt.shapes import profile_shapes
from edgevit.runtimes.tensorrt.versions import supported_line
from edgevit.types import TensorSpec

# TensorRT 11 does all four by default or ignores the flags, 10 does the opposite: spelled out, both do the same.
_SAME_IN_ALL_VERSIONS = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun")
# The engine of the build command: it is not the one that edgevit verified, and must not replace it.
TRTEXEC_ENGINE_FILE = "trtexec.engine"
_JETSON_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # not on PATH there
TIMES_DIFFER = (
    "trtexec reports the GPU's compute time without copies; edgevit latency times the whole call, and on the GPU the "
    "kernels with the copies to and from it"
)
TRTEXEC_TOLERANCE = "10 %"  # by which its time, copies added, may differ from the time on the GPU
_MEASURE = ("--warmUp=500", "--iterations=200", "--duration=10", "--avgRuns=1", "--percentile=50,90,95,99")
_REPORTS = ("--exportTimes=times.json", "--exportProfile=profile.json", "--exportLayerInfo=layers.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSteps:
    """The commands left to run on the device, for a bundle that lacks only its engine."""

    sentence: str
    build: str
    trtexec: str

    @property
    def trtexec_advice(self) -> str:
        """The way without edgevit, as a note of the report."""
        return (
            f"or, in the bundle's folder, with TensorRT's own tool (on a Jetson: {_JETSON_TRTEXEC}; {TIMES_DIFFER}): "
            f"{self.trtexec}"
        )

    def explain(self, missing: str) -> str:
        """Return what to do on the device, and `missing`, the reason why the engine was not built here.

        The advice to install TensorRT is cut off: on a machine without the device, the package alone builds nothing.
        """
        return f"{self.sentence} ({missing.partition('; install it: pip')[0]})"


def device_steps(
    bundle: Path, options: BuildOptions, version: str, *, inputs: Sequence[TensorSpec] = ()
) -> DeviceSteps:
    """Return the commands for the device, and a sentence that says why the bundle in `bundle` has no engine."""
    build = build_command(bundle / ENGINE_FILE)
    return DeviceSteps(
        sentence=f"{bundle.name} has no engine yet: TensorRT builds on the device only; on the device: {build}",
        build=build,
        # A path relative to the bundle: its place on the device is not known here.
        trtexec=trtexec_build_command(Path(MODEL_FILE), options, version, inputs=inputs),
    )


def trtexec_build_command(
    model: Path, options: BuildOptions, version: str, *, inputs: Sequence[TensorSpec] = ()
) -> str:
    """Return the trtexec command that builds and times `model` on the device, with the same effect in every version.

    It does not overwrite the engine that edgevit builds. A dynamic batch requires `inputs`, the graph's inputs. Raises
    UsageError without them, MissingError for an unsupported version.
    """
    line = supported_line(version)
    precision = {"fp16": ["--fp16"], "int8": ["--int8"]}.get(options.precision, [])
    command = [
        "trtexec",
        f"--onnx={model}",
        # From TensorRT 10 on, the graph's types are the precision.
        *(precision if line == "8.6" else ["--stronglyTyped"]),
        *(["--noTF32"] if options.precision == "fp32" else []),
        *_shape_flags(options.dynamic_batch, inputs),
        *([f"--memPoolSize=workspace:{options.workspace_mb}M"] if options.workspace_mb else []),
        *_SAME_IN_ALL_VERSIONS,
        *_MEASURE,
        "--profilingVerbosity=detailed",
        *_REPORTS,
        f"--timingCacheFile={model.with_suffix('.timing')}",
        f"--saveEngine={model.with_name(TRTEXEC_ENGINE_FILE)}",
    ]
    return shlex.join(command)


def trtexec_time_command(engine: Path, options: BuildOptions, *, inputs: Sequence[TensorSpec] = ()) -> str:
    """Return the trtexec command that times the engine file `engine`, at the optimum of a dynamic batch.

    A dynamic batch requires `inputs`, the engine's inputs. Raises UsageError without them.
    """
    shapes = [flag for flag in _shape_flags(options.dynamic_batch, inputs) if flag.startswith("--shapes=")]
    return shlex.join(["trtexec", f"--loadEngine={engine}", *shapes, *_SAME_IN_ALL_VERSIONS, *_MEASURE, *_REPORTS])


def _shape_flags(batches: BatchRange | None, inputs: Sequence[TensorSpec]) -> list[str]:
    if batches is None:
        return []
    if not any(spec.is_dynamic for spec in inputs):
        raise UsageError("a dynamic batch requires the inputs of the graph or engine: pass inputs=")
    shapes = profile_shapes(inputs, batches)
    flags = []
    for flag, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2), ("--shapes", 1)):
        named = (f"{name}:{'x'.join(str(size) for size in shape[index])}" for name, shape in shapes.items())
        flags.append(f"{flag}={','.join(named)}")
    return flags
