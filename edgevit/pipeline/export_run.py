"""ExportRun, BuiltBundle and StageTimer: the state that the stages of one export share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.fp16 import PrecisionPlan
from edgevit.export.quantization.sensitivity import QuantizationPlan
from edgevit.latency.report import LatencyReport
from edgevit.models.description import ModelDescription
from edgevit.peak_memory import PeakMemory
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.references import ReferenceData
from edgevit.pipeline.source import Source
from edgevit.runtimes.base import BuildOptions, Engine, Runtime
from edgevit.runtimes.build import BuildResult
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.tensorrt.trtexec import DeviceSteps

# Called when a stage starts or advances (seconds None) and when it ends.
Progress: TypeAlias = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True)
class StageTime:
    """Time and memory of one stage."""

    name: str
    elapsed_s: float
    peak_mb: float | None = None  # resident, with child processes; None if it was not watched


class StageTimer:
    """Times the stages of an export and forwards them to the progress display.

    With `watch_memory`, the peak of each stage's memory is taken too.
    """

    def __init__(self, progress: Progress | None = None, *, watch_memory: bool = False) -> None:
        self._progress = progress
        self._watch_memory = watch_memory
        self.times: list[StageTime] = []

    @contextmanager
    def stage(self, name: str, *, timed_calls: bool = False) -> Iterator[None]:
        """Time a block as one stage; a block that raises is not recorded. `timed_calls`: nothing may disturb it."""
        self.update(name)
        start = time.perf_counter()
        with self.watch(timed_calls=timed_calls) as memory:
            yield
        self.record(name, time.perf_counter() - start, memory)

    @contextmanager
    def watch(self, *, timed_calls: bool = False) -> Iterator[PeakMemory | None]:
        """Watch the memory during a block, if this timer does."""
        if not self._watch_memory:
            yield None
            return
        with PeakMemory(children=not timed_calls) as memory:
            yield memory

    def update(self, text: str) -> None:
        """Show `text` as the current state, such as "ort: calibrate, 3 of 64 inputs"."""
        if self._progress:
            self._progress(text, None)

    def record(self, name: str, elapsed_s: float, memory: PeakMemory | None = None) -> None:
        """Add a stage that was timed elsewhere."""
        self.times.append(StageTime(name, elapsed_s, None if memory is None else memory.peak_mb))
        if self._progress:
            self._progress(name, elapsed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRun:
    """One export in progress, once its model is captured and its references are computed."""

    model: ModelDescription
    source: Source
    config: ExportConfig
    captured: OnnxGraph  # the graph as PyTorch exported it, or as it is in the file
    references: ReferenceData
    timer: StageTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOutcome:
    """The reports of the candidates that were measured, by name, and why others were not."""

    reports: Mapping[str, LatencyReport] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltBundle:
    """A bundle in the staging folder: complete except for its latency and its manifest."""

    runtime: Runtime
    folder: Path
    options: BuildOptions
    specialized: OnnxGraph  # in fp32
    graph: OnnxGraph  # in the requested precision
    precision_plan: PrecisionPlan | QuantizationPlan | None  # None for fp32
    built: BuildResult
    parity: ParityReport
    device_steps: DeviceSteps | None  # commands that build the engine on the device; None if it is built here

    @property
    def fmt(self) -> str:
        return self.runtime.fmt

    @property
    def deployable_engine(self) -> Engine | None:
        """The engine, if it runs on this machine and its format is meant for deployment.

        The `onnx` format is not: ONNX Runtime executes its file node by node as a reference, so its precision and
        speed are not those of a deployed engine.
        """
        return self.built.engine if self.runtime.format.deployable else None
