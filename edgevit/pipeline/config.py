"""What is to be made of a subject, and the clock that times how it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from edgevit.errors import MissingError, UsageError
from edgevit.export.capture import CAPTURE_OPSET
from edgevit.export.lint.targets import parse_version
from edgevit.export.passes import OLDEST_OPSET
from edgevit.formats import Format, get_format
from edgevit.latency.measure import MeasurePlan
from edgevit.pipeline.report import StageTime
from edgevit.precisions import get_policy
from edgevit.runtimes.base import BuildOptions, Runtime
from edgevit.runtimes.build import usable_version
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.versions import supported_line
from edgevit.types import Array

NEWEST_ON_JETPACK_6 = "10.3"
MAX_DROP = 0.01  # of top-1, where labelled images tell it and nobody says otherwise

# Called as a stage starts or moves on (seconds None) and as it ends.
Progress: TypeAlias = Callable[[str, float | None], None]
# A folder of photos, or the inputs themselves by name, each (rows, ...).
Calibration: TypeAlias = Path | Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What is to be made of a subject."""

    formats: tuple[str, ...]
    options: BuildOptions = field(default_factory=BuildOptions)
    out: Path = Path()
    opset: int | None = None
    images: Path | None = None
    calib: Calibration | None = None
    eval: Path | None = None  # labelled images that a lower precision is judged on
    max_drop: float | None = None  # of top-1, as a share; None: MAX_DROP where `eval` tells it
    # What a graph for TensorRT is linted against, and lowered for; None: that of this machine, or NEWEST_ON_JETPACK_6.
    trt_version: str | None = None
    verify: bool = True
    latency: bool = True
    # Enough for a p90; `edgevit latency` measures longer.
    plan: MeasurePlan = field(default_factory=lambda: MeasurePlan(min_runs=64, turn_s=0.15))

    def __post_init__(self) -> None:
        if not self.formats:
            raise UsageError("name at least one format: --fmt onnx,ort,openvino")
        if len(set(self.formats)) != len(self.formats):
            raise UsageError(f"a format stands twice in {','.join(self.formats)}")
        if self.options.compute_capabilities and not any(entry.ahead_of_time for entry in self.targets):
            raise UsageError("--sm names the GPUs that --fmt trt-rtx compiles for; leave it out")
        if self.options.workspace_mb is not None and not any(entry.workspace for entry in self.targets):
            raise UsageError("--workspace is for TensorRT's builders: --fmt trt or trt-rtx; leave it out")
        if self.opset is not None and not OLDEST_OPSET <= self.opset <= CAPTURE_OPSET:
            raise UsageError(f"--opset is one of {OLDEST_OPSET} to {CAPTURE_OPSET}, not {self.opset}")
        if self.trt_version is not None:
            self._check_trt_version(self.trt_version)
        self._check_precision()

    def _check_trt_version(self, version: str) -> None:
        if not any(entry.versioned_parser for entry in self.targets):
            raise UsageError("--trt-version is for --fmt trt; leave it out")
        parse_version(version)
        try:
            supported_line(version)
        except MissingError as error:
            raise UsageError(str(error)) from error

    def _check_precision(self) -> None:
        if self.options.precision == "fp32":
            given = {"--calib": self.calib, "--eval": self.eval, "--max-drop": self.max_drop}
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"{name} is for a lower precision; fp32 needs none, edgevit eval measures it")
        if get_policy(self.options.precision).needs_calibration and self.calib is None:
            raise UsageError(
                f"{self.options.precision} takes its ranges from photos like those that the model will see: "
                "give a folder of a hundred or more with --calib DIR"
            )
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise UsageError(f"--max-drop is a share of the images from 0 to below 1, such as 1%, not {self.max_drop}")
        if self.max_drop is not None and self.options.precision == "fp16" and self.eval is None:
            raise UsageError("in fp16 --max-drop is judged on labelled images alone: give them with --eval DIR")
        if self.max_drop is not None and not self.verify:
            raise UsageError("--max-drop is a bound, and --no-verify lets nothing be judged; leave one of them out")

    @property
    def targets(self) -> tuple[Format, ...]:
        """The entries of the requested formats."""
        return tuple(get_format(name) for name in self.formats)

    @property
    def allowed_drop(self) -> float | None:
        """The drop in top-1 that is too much, as a share; None where nothing tells it."""
        return MAX_DROP if self.max_drop is None and self.eval is not None else self.max_drop

    def options_for(self, runtime: Runtime) -> BuildOptions:
        """The options without what is meant for another runtime of the recipe."""
        return self.options if runtime.format.ahead_of_time else replace(self.options, compute_capabilities=None)

    def opset_for(self, fmt: str) -> int | None:
        """The opset asked for; that which an old TensorRT reads, where the bundle is for one."""
        old_parser = get_format(fmt).versioned_parser and parse_version(self.target_version) < (10, 0)
        if self.opset is None and old_parser:
            return OLDEST_OPSET
        return self.opset

    @property
    def target_version(self) -> str:
        """The TensorRT that the bundle is for."""
        return self.trt_version or NEWEST_ON_JETPACK_6

    def for_machine(self) -> ExportConfig:
        """The recipe, for the TensorRT of this machine where it builds with one and no other is asked for."""
        versioned = [entry.name for entry in self.targets if entry.versioned_parser]
        if not versioned or self.trt_version is not None or not cuda.has_gpu():
            return self
        version, _ = usable_version(get_runtime(versioned[0]))
        return self if version is None else replace(self, trt_version=".".join(version.split(".")[:2]))


class StageTimer:
    """Times the stages and tells the progress display of them."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.times: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.at(name)
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def at(self, name: str) -> None:
        """Shows where a stage is."""
        if self._progress:
            self._progress(name, None)

    def add(self, name: str, elapsed_s: float) -> None:
        self.times.append(StageTime(name, elapsed_s))
        if self._progress:
            self._progress(name, elapsed_s)
