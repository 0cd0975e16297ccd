"""TensorRT-RTX as a Runtime: engines are built without a GPU and run on one.

Engines are built ahead of time, without a GPU, for some compute capabilities, and run on an NVIDIA GPU. The engine
contains compiled kernels; those for convolutions and matmuls are selected and compiled when it is loaded. The types in
the ONNX file are the types that run: the network is strongly typed, and TF32 is off.
"""

from __future__ import annotations

import json
import struct
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, cast

from edgevit.errors import BuildError
from edgevit.files import os_reason, write_atomically
from edgevit.runtimes.base import Artifact, BatchRange, BuildOptions, Engine, Runtime
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from edgevit.runtimes.tensorrt.record import ENGINE_FILE
from edgevit.runtimes.tensorrt.versions import TensorRtModuleRtx
from edgevit.runtimes.tensorrt_rtx.compiler import TIMEOUT_S, Compiled, compile_onnx
from edgevit.runtimes.tensorrt_rtx.kernels import KernelPlan, misreading, read_plan, target_name

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
        engine = folder / ENGINE_FILE
        _write(engine, compiled.engine)
        files, notes = _write_kernels(compiled, model, folder, options.compute_capabilities, batch=batches.optimum)
        first = f"built for {target_name(options.compute_capabilities)} without a GPU; TF32 is off"
        return Artifact(
            fmt=self.fmt, files=(engine, *files), build_s=time.perf_counter() - start, notes=(first, *notes)
        )

    def built_precision(self, artifact: Path) -> ExecutedPrecision:
        """Precision of the matmul kernels in the compiler's kernel list."""
        return built_precision(artifact)

    def session(self) -> AbstractContextManager[object]:
        """Start CUDA and import TensorRT-RTX."""
        device = cuda.Device()  # a missing GPU is reported before a missing package
        try:
            self.load()
        except BaseException:
            device.close()
            raise
        return device

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        """Load an engine on the first GPU. Raises BuildError if it is not an engine, MissingError without a GPU."""
        content = read_engine(artifact)
        with cuda.Device():  # a missing GPU is reported before a missing package
            return TensorRtRtxEngine(cast(TensorRtModuleRtx, self.load()), content, artifact)


class TensorRtRtxEngine(TensorRtEngine):
    """An engine of TensorRT-RTX: it runs as TensorRT's, and its kernel list shows its precision."""

    fmt = TensorRtRtx.fmt
    title = "TensorRT-RTX"

    def __init__(self, trt: TensorRtModuleRtx, content: bytes, artifact: Path) -> None:
        self._artifact = artifact
        super().__init__(trt, content)

    @property
    def _has_contexts(self) -> bool:
        return True

    def executed_precision(self) -> ExecutedPrecision:
        """Precision of the matmul kernels, as the compiler listed them at build time."""
        return built_precision(self._artifact)


def built_precision(artifact: Path) -> ExecutedPrecision:
    """Return an engine's precision from the kernel list next to it, without a GPU; unknown without a list."""
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
        raise BuildError(
            f"cannot read the engine {path}: {os_reason(error)}; export or copy the bundle again"
        ) from error
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise BuildError(f"{path} is not a TensorRT-RTX engine ({len(content)} bytes); export or copy the bundle again")
    (size,) = struct.unpack_from("<Q", content, 16)
    if size != len(content):
        raise BuildError(f"{path} is truncated: {len(content)} of {size} bytes; export or copy the bundle again")
    return content


def _write_kernels(
    compiled: Compiled, model: Path, folder: Path, compute_capabilities: tuple[int, ...] | None, *, batch: int
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write the kernel list; return its file and the notes about it. The engine stands without a list, too."""
    try:
        plan = read_plan(compiled, model, compute_capabilities, batch=batch)
    except BuildError as error:
        return (), (f"the precision of the kernels is not reported: {error}",)
    file = folder / KERNELS_FILE
    _write(file, (json.dumps({**plan.to_json(), "file": model.name}) + "\n").encode())
    return (file,), (_UNFUSED,) if _has_small_types(plan) else ()


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {os_reason(error)}; free disk space, or use another --out") from error


def _has_small_types(plan: KernelPlan) -> bool:
    return any(
        tensor.dtype in ("Int8", "FP8") for kernel in plan.kernels for tensor in (*kernel.inputs, *kernel.outputs)
    )
