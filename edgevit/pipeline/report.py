"""ExportReport and BundleReport: the results of an export and their JSON form."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevit.formats import get_format
from edgevit.images import sample_images
from edgevit.latency.compare import latency_json
from edgevit.latency.report import LatencyReport
from edgevit.pipeline.comparison import PrecisionComparison
from edgevit.pipeline.export_run import StageTime
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.precision import ExecutedPrecision, precision_json
from edgevit.types import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """One bundle of an export."""

    path: Path
    fmt: str
    title: str
    requested_precision: Precision
    actual_precision: ExecutedPrecision | None  # None: no engine has run here
    nodes: int
    opset: int
    size_bytes: int | None  # of the engine; None: it is not built yet
    missing: str | None  # the package or device that this machine lacks to build or run the engine
    notes: tuple[str, ...]
    comparison: PrecisionComparison | None = None  # with fp32; None for fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The results of one export."""

    model: str
    weights: str
    lacks_checkpoint: bool  # whether the weights are known to be random
    reference: str  # what the engines are compared with, such as PyTorch
    baseline: str  # the name under which the model itself is measured
    weights_summary: str | None  # file, key, tensors and classes; None if no checkpoint was read
    preprocessing_note: str | None  # None if it is that of a registered model, or the input is no image
    stages: tuple[StageTime, ...]
    captured_nodes: int
    bundles: tuple[BundleReport, ...]
    parity: ParityReport
    latencies: tuple[LatencyReport, ...]
    classifies: bool  # whether the model maps photos to classes
    latency_problems: tuple[str, ...] = ()  # why candidates, or all of them, were not measured

    @property
    def next_command(self) -> str:
        """The command to run next, ready to paste."""
        bundle = shlex.quote(str(self.bundles[-1].path))
        if self.unbuilt:
            return f"edgevit build {shlex.quote(str(self.unbuilt[0].path))}"
        if self.classifies and not self.bundles[-1].missing and get_format(self.bundles[-1].fmt).deployable:
            photo = min(str(sample_images()[0]), os.path.relpath(sample_images()[0]), key=len)
            return f"edgevit run {bundle} {shlex.quote(photo)} --top 5"
        return f"edgevit verify {bundle}"

    @property
    def unbuilt(self) -> tuple[BundleReport, ...]:
        """The bundles whose engine has to be built on the device."""
        return tuple(bundle for bundle in self.bundles if bundle.size_bytes is None)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "weights": self.weights,
            "preprocessing_note": self.preprocessing_note,
            "stages": [asdict(stage) for stage in self.stages],
            "captured_nodes": self.captured_nodes,
            "bundles": [
                {
                    "path": str(bundle.path),
                    "fmt": bundle.fmt,
                    "precision": precision_json(bundle.requested_precision, bundle.actual_precision),
                    "nodes": bundle.nodes,
                    "opset": bundle.opset,
                    "size_bytes": bundle.size_bytes,
                    "missing": bundle.missing,
                    "notes": list(bundle.notes),
                    "verdict": bundle.comparison.to_json() if bundle.comparison else None,
                }
                for bundle in self.bundles
            ],
            "parity": self.parity.to_json(),
            "latency": latency_json(self.latencies),
            "latency_problems": list(self.latency_problems),
            "next_command": self.next_command,
        }
