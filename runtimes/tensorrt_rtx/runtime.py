"""TensorRtRtx and its engine.

Engines are built ahead of time, without a GPU, for some compute capabilities, and run on an NVIDIA GPU. The engine
contains compiled kernels; those for convolutions and matmuls are selected and compiled when it is loaded. The types in
the ONNX file are the types that run: the network is strongly typed, and TF32 is off.
"""

from __future__ import annotations

import functools
import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from edgevit.errors import BuildError, InferenceError
from edgevit.files import write_atomically
from edgevit.runtimes.base import Artifact, BatchRange, BuildOptions, Engine, Runtime
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.tensorrt import api
from edgevit.runtimes.tensorrt.cuda import Device, DeviceBuffer
from edgevit.runtimes.tensorrt.record import ENGINE_FILE
from edgevit.runtimes.tensorrt.versions import TensorRtModuleRtx
from edgevit.runtimes.tensorrt_rtx.compiler import TIMEOUT_S, compile_onnx, make_logger
from edgevit.runtimes.tensorrt_rtx.kernels import KernelPlan, misreading, read_plan, target_name
from edgevit.types import Array, Dim, TensorSpec

KERNELS_FILE = "model.kernels.json"  # the compiler's kernel list; reading it from the engine requires a GPU
_MAGIC = b"vtrt"
_HEADER_BYTES = 64  # starts with the magic; bytes 16 to 23 are the file's size, little-endian (seen in 1.7.1)
_UNFUSED = "int8 and fp8 are not fused without a GPU: the kernel list does not show their speed, measure on a GPU"


class TensorRtRtx(Runtime):
    """Builds on any machine; engines run on GPUs of the compute capabilities they were built for."""

    fmt: ClassVar[str] = "trt-rtx"
    module: ClassVar[str] = "tensorrt_rtx"

    def build(self, model: Path, folder: Path, options: BuildOptions, *, timeout_s: float = TIMEOUT_S) -> Artifact:
        """Compile in a subprocess.

        Raises BuildError if that fails, or if the parser interprets a node differently from ONNX.
        """
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
        engine, kernels = folder / ENGINE_FILE, folder / KERNELS_FILE
        _write(engine, compiled.engine)
        _write(kernels, (json.dumps({**plan.to_json(), "file": model.name}) + "\n").encode())
        notes = [f"built for {target_name(options.compute_capabilities)} without a GPU; TF32 is off"]
        if _has_small_types(plan):
            notes.append(_UNFUSED)
        return Artifact(fmt=self.fmt, files=(engine, kernels), build_s=time.perf_counter() - start, notes=tuple(notes))

    def built_precision(self, artifact: Path) -> ExecutedPrecision:
        """Precision of the matmul kernels in the compiler's kernel list."""
        return built_precision(artifact)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        """Load an engine on the first GPU. Raises BuildError if it is not an engine, MissingError without a GPU."""
        content = read_engine(artifact)
        device = Device()
        try:
            return TensorRtRtxEngine(cast(TensorRtModuleRtx, self.load()), content, device, artifact)
        except BaseException:
            device.close()
            raise


class TensorRtRtxEngine(Engine):
    """An engine with one execution context, one stream, and buffers for the largest batch."""

    fmt = TensorRtRtx.fmt

    def __init__(self, trt: TensorRtModuleRtx, content: bytes, device: Device, artifact: Path) -> None:
        self._device, self._log, self._artifact = device, _logger(trt), artifact
        self._log.errors.clear()
        self._runtime = trt.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(content)
        context = None if engine is None else engine.create_execution_context()
        if engine is None or context is None:
            raise BuildError(
                f"TensorRT-RTX {trt.__version__} cannot load {artifact} on {device.name} (compute capability "
                f"{device.compute_capability}): {self._last_error()}; rebuild it for this GPU with this version"
            )
        self._engine, self._context = engine, context
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        specs = {name: _spec(trt, self._engine, name) for name in names}
        self.inputs = tuple(spec for name, spec in specs.items() if name in inputs)
        self.outputs = tuple(spec for name, spec in specs.items() if name not in inputs)
        self.batches = self._profile()
        self._buffers = self._allocate()

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._require_open(self.__dict__.get("_context"))
        try:
            return self._run(feeds)
        except BuildError as error:  # of CUDA
            raise InferenceError(str(error)) from error

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._device.activate()
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise InferenceError(
                    f"TensorRT-RTX does not accept {name} of shape {list(array.shape)}: {self._last_error()}; "
                    "rebuild the engine for this batch: --dynamic-batch MIN:OPT:MAX"
                )
            self._buffers[name].upload(array)
        if not self._context.execute_async_v3(self._device.stream):
            raise InferenceError(
                f"TensorRT-RTX failed to run {self._artifact}: {self._last_error()}; rebuild it: edgevit build BUNDLE"
            )
        results: dict[str, Array] = {}
        for spec in self.outputs:
            results[spec.name] = np.empty(tuple(self._context.get_tensor_shape(spec.name)), spec.dtype)
            self._buffers[spec.name].download(results[spec.name])
        self._device.synchronize()
        return results

    def executed_precision(self) -> ExecutedPrecision:
        """Precision of the matmul kernels, as the compiler listed them at build time."""
        return built_precision(self._artifact)

    def close(self) -> None:
        if not hasattr(self, "_context"):
            return
        self._device.activate()
        for buffer in self._buffers.values():
            buffer.free()
        del self._context, self._engine, self._runtime  # in this order: each belongs to the next
        self._device.close()

    def _profile(self) -> BatchRange | None:
        """Return the batch sizes of the engine's only profile; None if its batch is fixed."""
        for spec in self.inputs:
            if spec.is_dynamic:
                return BatchRange(*(int(shape[0]) for shape in self._engine.get_tensor_profile_shape(spec.name, 0)))
        return None

    def _allocate(self) -> dict[str, DeviceBuffer]:
        """Allocate a buffer for each input and output, for the largest batch, and register it with the context."""
        batch = self.batches.maximum if self.batches else 1
        buffers = {}
        for spec in (*self.inputs, *self.outputs):
            count = int(np.prod(spec.with_batch(batch), dtype=np.int64))
            buffers[spec.name] = self._device.allocate(count * np.dtype(spec.dtype).itemsize)
            self._context.set_tensor_address(spec.name, buffers[spec.name].address)
        return buffers

    def _last_error(self) -> str:
        return self._log.errors[-1].strip().splitlines()[0] if self._log.errors else "no reason reported"


def built_precision(artifact: Path) -> ExecutedPrecision:
    """Return an engine's precision from the kernel list beside it, without a GPU. Unknown if the list is missing."""
    try:
        plan = json.loads(artifact.with_name(KERNELS_FILE).read_text("utf-8"))
        return ExecutedPrecision(dict(plan["precisions"]))
    except (OSError, ValueError, KeyError):
        return ExecutedPrecision()


def read_engine(path: Path) -> bytes:
    """Read an engine file. Raises BuildError if it is missing, truncated, or not a TensorRT-RTX engine."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read the engine {path}: {error.strerror}; export or copy the bundle again") from error
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise BuildError(f"{path} is not a TensorRT-RTX engine ({len(content)} bytes); export or copy the bundle again")
    (size,) = struct.unpack_from("<Q", content, 16)
    if size != len(content):
        raise BuildError(f"{path} is truncated: {len(content)} of {size} bytes; export or copy the bundle again")
    return content


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error.strerror}; free disk space, or use another --out") from error


def _has_small_types(plan: KernelPlan) -> bool:
    return any(
        tensor.dtype in ("Int8", "FP8") for kernel in plan.kernels for tensor in (*kernel.inputs, *kernel.outputs)
    )


def _spec(trt: TensorRtModuleRtx, engine: api.ICudaEngine, name: str) -> TensorSpec:
    shape: list[Dim] = ["batch" if dim == -1 else int(dim) for dim in engine.get_tensor_shape(name)]
    return TensorSpec(name, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name, tuple(shape))


@functools.cache
def _logger(trt: TensorRtModuleRtx) -> Any:
    """Return the process's only logger: TensorRT uses the first logger it is given."""
    return make_logger(trt, verbose=False)
