"""TensorRT 8.6, 10 and 11 on the machine it is installed on: a Jetson with JetPack 6 or 7, or a PC with an NVIDIA GPU.

No test of this project has run TensorRT on a GPU yet. See docs/tensorrt.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from edgevit.errors import UsageError
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Runtime, ToolCommand
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from edgevit.runtimes.tensorrt.record import ENGINE_FILE, EngineRecord
from edgevit.runtimes.tensorrt.trtexec import TIMES_DIFFER, TRTEXEC_TOLERANCE, trtexec_time_command
from edgevit.runtimes.tensorrt.versions import JETSON_INSTALL, is_jetson, supported_module
from edgevit.runtimes.tensorrt.worker import build_in_subprocess, record_here
from edgevit.types import TensorSpec


class TensorRt(Runtime):
    """TensorRT on this machine's GPU. Its engines run with the same version on the same GPU and system only."""

    fmt: ClassVar[str] = "trt"
    module: ClassVar[str] = "tensorrt"

    @property
    def install_hint(self) -> str:
        """The command that installs TensorRT: JetPack's own on a Jetson, for which PyPI has no package."""
        return JETSON_INSTALL if is_jetson() else super().install_hint

    def load(self) -> ModuleType:
        """Import TensorRT. Raises MissingError if it is not installed, or in a version edgevit does not support."""
        module = super().load()
        supported_module(module)
        return module

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Build in a subprocess, check the precision that runs, and write the engine and its record.

        Raises BuildError with TensorRT's message if the build fails, crashes or is killed, PrecisionError if the engine
        runs another precision, MissingError without TensorRT or a GPU.
        """
        self.require_precision(options.precision)
        if options.compute_capabilities is not None:
            raise UsageError("TensorRT builds for the GPU of this machine; remove --sm")
        self.load()  # reports a missing package before a process is started
        start = time.perf_counter()
        # A folder next to the engine, so that the engine is renamed and not copied.
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:
            built = build_in_subprocess(model, Path(place), options, on_phase=self._on_phase)
            build_s = time.perf_counter() - start
            # One layer will do here: the caller knows which fraction of the graph has the precision, and checks that.
            built.precision.require(options.precision, runtime=self.title, expected=0.0)
            path = folder / ENGINE_FILE
            os.replace(built.path, path)
        record = built.record.write(folder, layers=dict(built.precision.layers), workspace_bytes=built.workspace)
        # A path relative to the bundle, which is renamed after the build.
        command = trtexec_time_command(Path(ENGINE_FILE), options, inputs=built.inputs)
        notes = (*built.record.notes, f"to time it in its folder: {command}", TIMES_DIFFER)
        return Artifact(fmt=self.fmt, files=(path, record), build_s=build_s, notes=notes)

    def time_command(
        self, engine: Path, options: BuildOptions, *, inputs: Sequence[TensorSpec] = ()
    ) -> ToolCommand | None:
        note = (
            "Its median GPU compute time plus those of the copies (H2D and D2H, if data transfers are left on) must be "
            f"within {TRTEXEC_TOLERANCE} of GPU p50: {TIMES_DIFFER}."
        )
        return ToolCommand(trtexec_time_command(engine, options, inputs=inputs), note)

    def session(self) -> AbstractContextManager[object]:
        """Import TensorRT and start CUDA."""
        self.load()
        return cuda.Device()

    def open(self, artifact: Path, options: BuildOptions) -> Engine:  # the engine itself knows its batch sizes
        """Load an engine built on this machine. Raises BuildError if it was built on another GPU, version or system."""
        trt = supported_module(self.load())
        with cuda.Device() as device:
            EngineRecord.read(artifact).require(record_here(trt, device), artifact)
            return TensorRtEngine(trt, artifact.read_bytes())
