"""A bundle in the making, and fp32 beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import EdgevitError, ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.pipeline.precision import Typing
from edgevit.runtimes.base import Runtime
from edgevit.runtimes.build import BuildResult
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.tensorrt.trtexec import DeviceSteps


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltBundle:
    """A bundle in the making: everything but its latency and its manifest."""

    runtime: Runtime
    folder: Path
    graph: OnnxGraph
    typing: Typing | None  # what is not in the precision asked for, where that is not fp32
    built: BuildResult
    parity: ParityReport
    steps: DeviceSteps | None  # how the device builds the engine, where only it can


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Baseline:
    """fp32 in the same runtime, which a lower precision is held against."""

    graph: OnnxGraph
    built: BuildResult | None  # where the engine in the lower precision runs here


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """A disk that is full, or a file that may not be written, in one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EdgevitError):
            raise
        raise ExportError(
            f"cannot write {error.filename or place}: {error.strerror or error}; free some space, "
            "or name another folder with --out"
        ) from error
