"""TensorRT 8.6, 10 and 11 on the machine that has it: a Jetson with JetPack 6 or 7, or a desktop with an NVIDIA GPU.

In the files tensorrt*.py a variable named `builder` always holds a `tensorrt.Builder`, and so on: the names and their
classes stand in tests/runtimes/test_tensorrt_api.py, which holds all that is read from them against the API of every
version. TensorRT answers a failure with None, False or an empty list: each answer is looked at.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from edgevit.errors import MissingError, UsageError
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Runtime
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from edgevit.runtimes.tensorrt.record import ENGINE_FILE, EngineRecord
from edgevit.runtimes.tensorrt.versions import supported_line
from edgevit.runtimes.tensorrt.worker import build_in_child, record_here

JETSON = Path("/etc/nv_tegra_release")


class TensorRt(Runtime):
    """TensorRT on this machine's GPU; what it builds runs with this version, on this GPU and this system alone."""

    fmt: ClassVar[str] = "trt"
    module: ClassVar[str] = "tensorrt"

    def load(self) -> ModuleType:
        """TensorRT's module, of a version that edgevit builds with. Raises MissingError with what to install."""
        try:
            trt = super().load()
        except MissingError as error:
            if not JETSON.exists():
                raise
            raise MissingError(
                f"TensorRT comes with JetPack and is not seen from here ({error.__cause__}); make the virtual "
                "environment with --system-site-packages, or: sudo apt install python3-libnvinfer"
            ) from error
        supported_line(trt.__version__)
        return trt

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Builds in a child process, reads back which precision runs, and writes the engine and what it is bound to.

        Raises BuildError with TensorRT's own words, or where it crashed or was killed, PrecisionError where another
        precision runs, MissingError without TensorRT or a GPU.
        """
        self.require_precision(options.precision)
        if options.compute_capabilities is not None:
            raise UsageError("TensorRT builds for the GPU of the machine that it runs on; leave --sm out")
        self.load()  # what is missing is said before a process is started
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:  # beside its place: moved, not copied
            built = build_in_child(model, Path(place), options, on_phase=self._on_phase)
            build_s = time.perf_counter() - start
            built.precision.require(options.precision, runtime=self.title)
            path = folder / ENGINE_FILE
            os.replace(built.path, path)
        told = built.record.write(folder, layers=dict(built.precision.layers), workspace_bytes=built.workspace)
        return Artifact(fmt=self.fmt, files=(path, told), build_s=build_s, notes=built.record.notes)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:  # the engine itself tells its batches
        """Loads an engine that was built here. Raises BuildError for one from another version, GPU or system."""
        trt = self.load()
        with cuda.Device() as device:
            EngineRecord.read(artifact).require(record_here(trt, device), artifact)
            return TensorRtEngine(trt, artifact.read_bytes())
