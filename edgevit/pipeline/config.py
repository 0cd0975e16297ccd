"""ExportConfig: the options of an export; invalid combinations are rejected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, get_args

from edgevit.cpu import saturates_int8
from edgevit.errors import MissingError, UsageError, unknown_name
from edgevit.export.forms import STANDARD
from edgevit.export.graph import CAPTURE_OPSET
from edgevit.export.lint.targets import parse_version
from edgevit.export.passes import OLDEST_OPSET
from edgevit.export.quantization.groups import GroupChoice
from edgevit.formats import DEFAULT_TENSORRT, Format, Int8Range, get_format, list_formats
from edgevit.latency.plan import MeasurePlan
from edgevit.precisions import PrecisionPolicy, get_policy, list_policies
from edgevit.runtimes.base import BuildOptions, Runtime
from edgevit.runtimes.tensorrt.versions import supported_line
from edgevit.types import Array

DEFAULT_LATENCY_TIME_S = 120.0
DEFAULT_MAX_DROP = 0.01  # of top-1, if it is measured on labeled images

# A folder of photos, or the inputs themselves by name, each (rows, ...).
Calibration: TypeAlias = Path | Mapping[str, Array]


def widest_int8_range() -> Int8Range:
    """Return the widest range of int8 weights whose products this processor adds without overflow."""
    return "safe" if saturates_int8() else "full"


def require_max_drop(max_drop: float | None) -> None:
    """Raise UsageError unless `max_drop` is None or a fraction from 0 to below 1."""
    if max_drop is not None and not 0 <= max_drop < 1:  # written so that NaN fails too
        raise UsageError(f"--max-drop must be at least 0% and below 100%, got {100 * max_drop:.10g}%")


def _refuse(option: str, value: object, *, precisions: Sequence[str], instead: str) -> None:
    """Raise UsageError if an option that requires one of `precisions` has a value."""
    if value is not None:
        *others, last = precisions
        raise UsageError(f"{option} requires --precision {', '.join(others)} or {last}; {instead}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """The options of an export. Raises UsageError for options that contradict each other."""

    formats: tuple[str, ...]
    options: BuildOptions = field(default_factory=BuildOptions)
    out: Path = Path()
    opset: int | None = None
    images: Path | None = None  # photos for parity; None: those that come with edgevit
    calib: Calibration | None = None
    eval: Path | None = None  # labeled images that a lower precision is evaluated on
    int8_range: Int8Range = "safe"  # of int8 weights; x86 processors without VNNI compute "full" wrongly
    keep_float: tuple[str, ...] = ()  # PyTorch modules that stay in float in fp16 and int8
    groups: tuple[GroupChoice, ...] = ()  # of layers, whose precision in int8 `edgevit tune` chose by measuring
    max_drop: float | None = None  # of top-1, as a fraction; None: DEFAULT_MAX_DROP with `eval`, else no bound
    trt_version: str | None = None  # of the device; None: see `target_version`
    tuned_threads: int | None = None  # that the manifest records, and the engine is opened with from then on
    form: str = STANDARD  # the exact form of the graph; see export/forms.py
    onnxsim: bool = False  # whether onnxsim simplifies the graph after the passes
    strict: bool = False  # whether an image that cannot be read is an error, instead of being left out
    verify: bool = True  # whether parity with PyTorch is checked; the accuracy on `eval` is in any case
    explain: bool = True  # whether the first module that differs is searched for if parity fails
    latency: bool = True
    latency_time_s: float = DEFAULT_LATENCY_TIME_S  # limit of the whole latency measurement

    def __post_init__(self) -> None:
        if not self.formats:
            raise UsageError("no output format; name at least one: --fmt onnx,ort,openvino")
        if len(set(self.formats)) != len(self.formats):
            raise UsageError(f"duplicate format in --fmt {','.join(self.formats)}; name each format once")
        if self.options.compute_capabilities:
            self._require_format("--sm", lambda entry: entry.ahead_of_time)
        if self.options.workspace_mb is not None:
            self._require_format("--workspace", lambda entry: entry.workspace)
        if self.opset is not None and not OLDEST_OPSET <= self.opset <= CAPTURE_OPSET:
            raise UsageError(f"--opset {self.opset} is not supported; choose from {OLDEST_OPSET} to {CAPTURE_OPSET}")
        if self.trt_version is not None:
            self._check_trt_version(self.trt_version)
        if not 0 < self.latency_time_s < math.inf:
            raise UsageError(f"--latency-time must be a number of seconds above 0, not {self.latency_time_s:g}")
        self._check_precision()

    def _require_format(self, option: str, takes: Callable[[Format], bool]) -> None:
        """Raise UsageError if none of the requested formats takes `option`."""
        if any(takes(entry) for entry in self.targets):
            return
        names = [entry.name for entry in list_formats() if takes(entry)]
        added = "that format" if len(names) == 1 else "one of them"
        raise UsageError(f"{option} requires --fmt {' or '.join(names)}; add {added} or leave {option} out")

    def _check_trt_version(self, version: str) -> None:
        self._require_format("--trt-version", lambda entry: entry.versioned_parser)
        parse_version(version, known="8.6, 10.x or 11.x")
        try:
            supported_line(version)
        except MissingError as error:  # status 3 is for a bundle that lacks something on this machine
            raise UsageError(str(error)) from error

    def _check_precision(self) -> None:
        policy = get_policy(self.options.precision)
        self._check_unused(policy)
        if self.int8_range not in get_args(Int8Range):
            raise unknown_name("int8 range", self.int8_range, get_args(Int8Range))
        if self.int8_range == "full" and self.options.precision != "int8":
            raise UsageError("--int8-range requires --precision int8; leave one of them out")
        if policy.needs_calibration and self.calib is None:
            raise UsageError(
                f"{self.options.precision} needs calibration photos like those the model will see: "
                "give a folder of a hundred or more with --calib DIR"
            )
        require_max_drop(self.max_drop)
        if self.max_drop is not None and not policy.needs_calibration and self.eval is None:
            raise UsageError(f"--max-drop with {policy.name} needs labeled images; add --eval DIR")

    def _check_unused(self, policy: PrecisionPolicy) -> None:
        """Raise UsageError for an option that has no meaning in the requested precision."""
        if not policy.converts_graph:
            converted = [each.name for each in list_policies() if each.converts_graph]
            _refuse("--calib", self.calib, precisions=converted, instead="leave it out")
            _refuse("--keep-float", self.keep_float or None, precisions=converted, instead="leave it out")
        if policy.name == "fp32":
            lower = [each.name for each in list_policies() if each.name != "fp32"]
            instead = "the accuracy of fp32 is measured by edgevit eval"
            _refuse("--eval", self.eval, precisions=lower, instead=instead)
            _refuse("--max-drop", self.max_drop, precisions=lower, instead=instead)

    @property
    def targets(self) -> tuple[Format, ...]:
        """The entries of the requested formats."""
        return tuple(get_format(name) for name in self.formats)

    @property
    def compares_engines(self) -> bool:
        """Whether a stage after parity runs the engines: latency, or accuracy on labeled images."""
        return self.latency or self.eval is not None

    @property
    def measure_plan(self) -> MeasurePlan:
        """Enough runs for a p90 within the time; `edgevit latency` measures longer."""
        return MeasurePlan(min_runs=64, turn_s=0.15, max_total_s=self.latency_time_s)

    @property
    def checked_batch(self) -> int:
        """Batch size that graphs are checked with."""
        return self.options.smallest_batch

    @property
    def allowed_drop(self) -> float | None:
        """The fraction of top-1 that may be lost; None: no bound."""
        return DEFAULT_MAX_DROP if self.max_drop is None and self.eval is not None else self.max_drop

    def options_for(self, runtime: Runtime) -> BuildOptions:
        """Return the build options without those meant for another runtime."""
        return self.options if runtime.format.ahead_of_time else replace(self.options, compute_capabilities=None)

    def opset_for(self, fmt: str) -> int | None:
        """Return the requested opset; for TensorRT before 10, the newest opset that it reads, unless one was given."""
        old_parser = get_format(fmt).versioned_parser and parse_version(self.target_version) < (10, 0)
        if self.opset is None and old_parser:
            return OLDEST_OPSET
        return self.opset

    @property
    def target_version(self) -> str:
        """The TensorRT version that the graph is linted against and specialized for."""
        return self.trt_version or DEFAULT_TENSORRT
