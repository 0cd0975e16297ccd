"""TensorRT-RTX: engines built ahead of time, with no GPU, for named compute capabilities; run on an NVIDIA GPU.

The engine holds the compiler's finished kernels; convolutions and products are chosen and compiled as it loads. The
types in the ONNX file are the types that run: the network is strongly typed, and TF32 is off.
"""

from __future__ import annotations

import functools
import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError
from edgevit.files import write_atomically
from edgevit.runtimes.base import Artifact, BatchRange, BuildOptions, Engine, Runtime
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.tensorrt.cuda import Device, DeviceBuffer
from edgevit.runtimes.tensorrt.record import ENGINE_FILE
from edgevit.runtimes.tensorrt_rtx.compiler import TIMEOUT_S, compile_onnx, make_logger
from edgevit.runtimes.tensorrt_rtx.kernels import KernelPlan, misreading, read_plan, target_name
from edgevit.types import Array, Dim, TensorSpec

KERNELS = "model.kernels.json"  # the compiler's kernel list, which the engine itself does not show without a GPU
_MAGIC = b"vtrt"
_HEADER_BYTES = 64  # the magic; at byte 16 the size of the whole file, 8 bytes, lowest first (seen in 1.7.1)
_UNFUSED = (
    "int8 and fp8 stand unfused in a build with no GPU: the kernel list says nothing of their speed, measure on the GPU"
)


class TensorRtRtx(Runtime):
    """Builds anywhere; opens where there is a GPU of a compute capability that was built for."""

    fmt: ClassVar[str] = "trt-rtx"
    module: ClassVar[str] = "tensorrt_rtx"

    def build(self, model: Path, folder: Path, options: BuildOptions, *, timeout_s: float = TIMEOUT_S) -> Artifact:
        """Compiles in a child process. Refuses a graph that the parser gives another meaning than ONNX does."""
        self.require_precision(options.precision)
        start = time.perf_counter()
        batches = options.dynamic_batch or BatchRange(options.batch, options.batch, options.batch)
        compiled = compile_onnx(
            model,
            compute_capabilities=options.compute_capabilities,
            batches=batches,
            workspace_mb=options.workspace_mb,
            timeout_s=timeout_s,
        )
        if compiled.misread:
            raise BuildError(misreading(compiled))
        plan = read_plan(compiled, model, options.compute_capabilities, batch=batches.optimum)
        engine, kernels = folder / ENGINE_FILE, folder / KERNELS
        _write(engine, compiled.engine)
        _write(kernels, (json.dumps({**plan.to_json(), "file": model.name}) + "\n").encode())
        notes = [f"built for {target_name(options.compute_capabilities)} with no GPU; TF32 is off"]
        if _has_small_types(plan):
            notes.append(_UNFUSED)
        return Artifact(fmt=self.fmt, files=(engine, kernels), build_s=time.perf_counter() - start, notes=tuple(notes))

    def built_precision(self, artifact: Path) -> ExecutedPrecision:
        """From the compiler's kernel list."""
        return built_precision(artifact)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        """Loads an engine on the first GPU. Raises BuildError for a file that is none, MissingError with no GPU."""
        content = read_engine(artifact)
        device = Device()
        try:
            return TensorRtRtxEngine(self.load(), content, device, artifact)
        except BaseException:
            device.close()
            raise


class TensorRtRtxEngine(Engine):
    """One execution context, one stream, and buffers for the largest batch."""

    fmt = TensorRtRtx.fmt

    def __init__(self, trt: Any, content: bytes, device: Device, artifact: Path) -> None:
        self._device, self._log, self._artifact = device, _logger(trt), artifact
        self._log.errors.clear()
        self._runtime = trt.Runtime(self._log)
        # Both give None instead of an error.
        self._engine = self._runtime.deserialize_cuda_engine(content)
        self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise BuildError(
                f"TensorRT-RTX {trt.__version__} does not load {artifact} on {device.name} (compute capability "
                f"{device.compute_capability}): {self._last_error()}; build it again, for this GPU, with this version"
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        specs = {name: _spec(trt, self._engine, name) for name in names}
        self.inputs = tuple(spec for name, spec in specs.items() if name in inputs)
        self.outputs = tuple(spec for name, spec in specs.items() if name not in inputs)
        self.batches = self._profile()
        self._buffers = self._allocate()

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._device.activate()
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise BuildError(
                    f"TensorRT-RTX does not take {name} of shape {list(array.shape)}: {self._last_error()}"
                )
            self._buffers[name].upload(array)
        if not self._context.execute_async_v3(self._device.stream):
            raise BuildError(f"TensorRT-RTX failed to run {self._artifact}: {self._last_error()}")
        results: dict[str, Array] = {}
        for spec in self.outputs:
            results[spec.name] = np.empty(tuple(self._context.get_tensor_shape(spec.name)), spec.dtype)
            self._buffers[spec.name].download(results[spec.name])
        self._device.synchronize()
        return results

    def executed_precision(self) -> ExecutedPrecision:
        """By the kernels that multiply, as the compiler listed them at the build."""
        return built_precision(self._artifact)

    def close(self) -> None:
        if self._context is None:
            return
        self._device.activate()
        for buffer in self._buffers.values():
            buffer.free()
        self._context = self._engine = self._runtime = None  # in this order: each lives in the next
        self._device.close()

    def _profile(self) -> BatchRange | None:
        """The batches of the engine's one profile; None where its batch is fixed."""
        for spec in self.inputs:
            if spec.is_dynamic:
                return BatchRange(*(int(shape[0]) for shape in self._engine.get_tensor_profile_shape(spec.name, 0)))
        return None

    def _allocate(self) -> dict[str, DeviceBuffer]:
        """A buffer for each input and output, for the largest batch, made known to the context."""
        batch = self.batches.maximum if self.batches else 1
        buffers = {}
        for spec in (*self.inputs, *self.outputs):
            count = int(np.prod(spec.with_batch(batch), dtype=np.int64))
            buffers[spec.name] = self._device.allocate(count * np.dtype(spec.dtype).itemsize)
            self._context.set_tensor_address(spec.name, buffers[spec.name].address)
        return buffers

    def _last_error(self) -> str:
        return self._log.errors[-1].strip().splitlines()[0] if self._log.errors else "it gives no reason"


def built_precision(artifact: Path) -> ExecutedPrecision:
    """What an engine runs, from the kernel list beside it: no GPU is needed. Unknown where the list is lost."""
    try:
        plan = json.loads(artifact.with_name(KERNELS).read_text("utf-8"))
        return ExecutedPrecision(dict(plan["precisions"]))
    except (OSError, ValueError, KeyError):
        return ExecutedPrecision()


def read_engine(path: Path) -> bytes:
    """The engine file, whole. Raises BuildError where it is missing, cut off, or no TensorRT engine."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read the engine {path}: {error.strerror}; export or copy the bundle again") from error
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise BuildError(f"{path} is not a TensorRT-RTX engine ({len(content)} bytes); export or copy the bundle again")
    (size,) = struct.unpack_from("<Q", content, 16)
    if size != len(content):
        raise BuildError(f"{path} has {len(content)} bytes of {size}; copy the bundle again, or export it again")
    return content


def _write(path: Path, content: bytes) -> None:
    """Writes a whole file or none."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error.strerror}; free some space, or name another --out") from error


def _has_small_types(plan: KernelPlan) -> bool:
    return any(
        tensor.dtype in ("Int8", "FP8") for kernel in plan.kernels for tensor in (*kernel.inputs, *kernel.outputs)
    )


def _spec(trt: Any, engine: Any, name: str) -> TensorSpec:
    shape: list[Dim] = ["batch" if dim == -1 else int(dim) for dim in engine.get_tensor_shape(name)]
    return TensorSpec(name, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name, tuple(shape))


@functools.cache
def _logger(trt: Any) -> Any:
    """One a process: TensorRT keeps the first logger that it is given."""
    return make_logger(trt, verbose=False)
