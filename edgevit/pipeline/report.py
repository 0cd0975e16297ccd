"""What a run found, as a table for people and as JSON for machines."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgevit import metrics as accuracy
from edgevit.bundles.predict import Prediction
from edgevit.formats import get_format
from edgevit.images import sample_images
from edgevit.latency import compare
from edgevit.latency.environment import Environment
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, bounds
from edgevit.metrics import AccuracyReport
from edgevit.pipeline.comparison import PrecisionComparison
from edgevit.precisions import get_policy
from edgevit.runtimes.base import ExecutedPrecision, Runtime, precision_json
from edgevit.runtimes.parity import OutputParity, ParityReport
from edgevit.types import Interval, Precision

if TYPE_CHECKING:  # what PyTorch knows of is not needed on a device
    from edgevit.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class StageTime:
    name: str
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """One bundle that was made."""

    path: Path
    fmt: str
    title: str
    precision_asked: Precision
    precision_found: ExecutedPrecision | None  # None: nothing has run here
    nodes: int
    opset: int
    size_bytes: int | None  # None: there is no engine yet
    missing: str | None  # what this machine lacks to build the engine, or to run it
    notes: tuple[str, ...]
    verdict: PrecisionComparison | None = None  # on a lower precision, against fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Everything that an export did and found."""

    model: str
    weights: str
    stages: tuple[StageTime, ...]
    captured_nodes: int
    bundles: tuple[BundleReport, ...]
    parity: ParityReport
    latencies: tuple[LatencyReport, ...]
    classifies: bool  # photos: it takes them, and answers a row of classes

    @property
    def next_command(self) -> str:
        """What the user does next, ready to paste."""
        bundle = shlex.quote(str(self.bundles[-1].path))
        if self.unbuilt:
            return f"edgevit build {shlex.quote(str(self.unbuilt[0].path))}"
        if self.classifies and not self.bundles[-1].missing and get_format(self.bundles[-1].fmt).deployable:
            photo = min(str(sample_images()[0]), os.path.relpath(sample_images()[0]), key=len)
            return f"edgevit run {bundle} {shlex.quote(photo)} --top 5"
        return f"edgevit verify {bundle}"

    @property
    def unbuilt(self) -> tuple[BundleReport, ...]:
        """The bundles that have no engine yet: it has to be built on the device."""
        return tuple(bundle for bundle in self.bundles if bundle.size_bytes is None)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "weights": self.weights,
            "stages": [{"name": stage.name, "elapsed_s": stage.elapsed_s} for stage in self.stages],
            "captured_nodes": self.captured_nodes,
            "bundles": [
                {
                    "path": str(bundle.path),
                    "fmt": bundle.fmt,
                    "precision": precision_json(bundle.precision_asked, bundle.precision_found),
                    "nodes": bundle.nodes,
                    "opset": bundle.opset,
                    "size_bytes": bundle.size_bytes,
                    "missing": bundle.missing,
                    "notes": list(bundle.notes),
                    "verdict": bundle.verdict.to_json() if bundle.verdict else None,
                }
                for bundle in self.bundles
            ],
            "parity": self.parity.to_json(),
            "latency": latency_json(self.latencies),
            "next_command": self.next_command,
        }


def stage_table(stages: Iterable[StageTime]) -> Table:
    table = _table("Stages", "stage", "seconds")
    for stage in stages:
        table.add_row(stage.name, f"{stage.elapsed_s:.2f}")
    return table


def bundle_table(bundles: Iterable[BundleReport]) -> Table:
    table = _table("Bundles", "bundle", "opset", "nodes", "MB", "asked", "runs (layers that multiply)")
    for bundle in bundles:
        found = bundle.precision_found or ExecutedPrecision()
        layers = ", ".join(f"{count} {name}" for name, count in found.layers.items())
        table.add_row(
            str(bundle.path),
            str(bundle.opset),
            str(bundle.nodes),
            f"{bundle.size_bytes / 1e6:.1f}" if bundle.size_bytes is not None else "no engine",
            bundle.precision_asked,
            (layers or "not told") if bundle.precision_asked == "fp32" else found.summary,
        )
    return table


def parity_table(results: Sequence[OutputParity]) -> Table:
    table = _table("Parity with PyTorch", "stage", "input", "batch", "max error / std", "cosine", "SNR dB", "top-1",
                   "verdict")  # fmt: skip
    for result in results:
        agreement = "" if result.agreement is None else f"{result.agreement:.0%}"
        table.add_row(
            result.stage,
            f"{len(result.max_abs)} {result.kind}",
            str(result.batch),
            f"{result.max_abs_of_std:.1e}",
            f"{min(result.cosine):.7f}",
            f"{result.snr_db:.0f}",
            agreement,
            "pass" if result.passed else f"FAIL: {'; '.join(result.failures)}",
        )
    precisions = dict.fromkeys(result.precision for result in results)
    table.caption = "; ".join(f"{precision}: {get_policy(precision).tolerance}" for precision in precisions)
    return table


def latency_table(reports: Sequence[LatencyReport]) -> Table:
    """Contestants of one interleaved run, each against the first."""
    with_peak = any(report.peak_memory_mb is not None for report in reports)
    table = _table("Latency, side by side", "contestant", "p50 ms", "p90 ms", "p99 ms", "mean ms", "images/s", "load s",
                   "first ms", "rise MB", *["peak MB"] * with_peak, "runs", f"time / {reports[0].name}",
                   "verdict")  # fmt: skip
    for row in compare.side_by_side(reports):
        report, ratio = row.report, row.ratio
        table.add_row(
            report.name,
            f"{report.p50_ms:.2f}",
            *(_number(value, 2) for value in (report.p90_ms, report.p99_ms)),
            f"{report.mean_ms:.2f}",
            f"{report.throughput_per_s:.1f}",
            _number(report.load_s, 2),
            _number(report.first_inference_ms, 1),
            _number(report.memory_rise_mb, 0),
            *[_number(report.peak_memory_mb, 0)] * with_peak,
            str(report.runs),
            "" if ratio is None else _ratio(ratio),
            "" if ratio is None else ratio.verdict,
        )
    first = reports[0]
    table.caption = (
        f"{_batches(reports)}, {first.threads or 'all'} threads, one process, turns in random order; "
        "- where the runs do not tell a percentile (p90 needs 64, p99 662). "
        f"{first.environment.cpu or first.environment.architecture}"
    )
    return table


def _batches(reports: Sequence[LatencyReport]) -> str:
    batches = [report.batch for report in reports]
    if len(set(batches)) == 1:
        return f"batch {batches[0]}"
    return f"batches {', '.join(map(str, batches))} (a row's ms are of its whole batch, its ratio is of one image)"


def latency_parts(reports: Sequence[LatencyReport]) -> list[RenderableType]:
    """The table, and what a reader must know before using it."""
    doubts = [f"{report.name}: {doubt}" for report in reports for doubt in report.warnings]
    runs = {report.name: report.details["precision"] for report in reports if "precision" in report.details}
    if len(set(runs.values())) > 1:
        doubts.insert(
            0, f"not of one precision: {', '.join(f'{name} {precision}' for name, precision in runs.items())}"
        )
    return [latency_table(reports), *(Text(f"note: {doubt}") for doubt in doubts)]


def lines(texts: Iterable[str]) -> list[RenderableType]:
    """Text as it is, a line each."""
    return [Text(text) for text in texts]


def latency_figures(report: LatencyReport) -> dict[str, Any]:
    """The figures of a report by name, without its samples."""
    return {
        "name": report.name,
        "p50_ms": report.p50_ms,
        "p90_ms": report.p90_ms,
        "p99_ms": report.p99_ms,
        "mean_ms": report.mean_ms,
        "std_ms": report.std_ms,
        "throughput_per_s": report.throughput_per_s,
        "runs": report.runs,
        "batch": report.batch,
        "threads": report.threads,
        "load_s": report.load_s,
        "first_inference_ms": report.first_inference_ms,
        "memory_rise_mb": report.memory_rise_mb,
        "peak_memory_mb": report.peak_memory_mb,
        "steady": report.steady,
        "doubts": list(report.warnings),
    }


def latency_json(reports: Sequence[LatencyReport]) -> list[dict[str, Any]]:
    """Figures, ratios to the first and every sample."""
    rows = compare.side_by_side(reports) if reports else ()
    return [
        {
            **latency_figures(row.report),
            "ratio": None if row.ratio is None else row.ratio.value,
            "ratio_interval": None if row.ratio is None else bounds(row.ratio.interval),
            "verdict": None if row.ratio is None else row.ratio.verdict,
            "evidence": row.report.to_json(),
        }
        for row in rows
    ]


def run_parts(report: ExportReport) -> list[RenderableType]:
    """All that an export has to show, in the order in which it happened."""
    parts: list[RenderableType] = [stage_table(report.stages), bundle_table(report.bundles)]
    notes = list(dict.fromkeys(note for bundle in report.bundles for note in bundle.notes))
    if report.parity.results:
        parts.append(parity_table(report.parity.results))
        notes += report.parity.warnings
    else:
        notes.append("parity was left out: nothing shows that the engines compute what PyTorch computes")
    for bundle in report.bundles:
        if bundle.missing and bundle.size_bytes is not None:
            notes.append(f"{bundle.fmt}: the engine was built and not run here: {bundle.missing}")
    if report.weights.startswith("random"):
        notes.append("the weights are random: latency and parity hold, the answers mean nothing (--weights FILE)")
    parts += [Text(f"note: {note}") for note in notes]
    parts += latency_parts(report.latencies) if report.latencies else []
    return parts + [Text(f"{bundle.path}: {bundle.verdict.sentence}") for bundle in report.bundles if bundle.verdict]


def accuracy_table(report: AccuracyReport) -> Table:
    """Contestants on the same images, each against the first."""
    first, *others = report.evaluations
    versus = (f"agrees with {first.name} %", "points lost") if others else ()
    table = _table("Accuracy, on the same images", "contestant", "runs", "images", "top-1 %", "top-5 %", *versus)
    for evaluation in report.evaluations:
        share = f"{100 * accuracy.agreement(first, evaluation):.2f}"
        drop = str(accuracy.drop_points(first, evaluation))
        table.add_row(
            evaluation.name,
            evaluation.precision,
            str(evaluation.images),
            _share(evaluation.top1, evaluation.top1_interval),
            _share(evaluation.top5, evaluation.top5_interval),
            *((share, drop) if evaluation is not first else ()),
        )
    table.caption = (
        "in brackets 95 % intervals: Wilson's for a share, Agresti and Min's for what is lost on the same images"
    )
    return table


def accuracy_parts(report: AccuracyReport) -> list[RenderableType]:
    """The table, where the classes come from, and what a reader must know before using it."""
    counts = {evaluation.name: evaluation.not_finite for evaluation in report.evaluations}
    broken = [
        f"{name}: {count} answers hold NaN or infinity, and count as wrong" for name, count in counts.items() if count
    ]
    return [accuracy_table(report), *(Text(f"note: {note}") for note in (report.how, *report.notes, *broken))]


def model_table(specs: Iterable[ModelSpec]) -> Table:
    table = _table("Models", "name", "family", "input", "top-1 %", "parameters M", "multiply-adds G", "figures from")
    for spec in specs:
        paper = spec.paper
        table.add_row(
            spec.name,
            spec.family,
            "x".join(str(side) for side in spec.preprocessing.input_size),
            *(_number(value, None) for value in (paper.top1, paper.params_m, paper.macs_g)),
            paper.source,
        )
    return table


def model_json(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "family": spec.family,
        "input_size": list(spec.preprocessing.input_size),
        "num_classes": spec.num_classes,
        "included_weights": spec.included_weights,
        "paper": {
            "top1": spec.paper.top1,
            "params_m": spec.paper.params_m,
            "macs_g": spec.paper.macs_g,
            "source": spec.paper.source,
        },
    }


def answer_parts(answers: Iterable[Prediction]) -> list[RenderableType]:
    """For each photo its path and its most likely classes."""
    parts: list[RenderableType] = []
    for answer in answers:
        table = Table(box=None, show_header=False)
        for _, name, probability in answer.top:
            table.add_row(f"{probability:6.1%}", name)
        parts += [Text(str(answer.image)), table]
    return parts


def doctor_table(environment: Environment, versions: Iterable[tuple[Runtime, str | None, str]]) -> Table:
    """What the machine is, and each runtime with its version, or with why there is none."""
    table = _table("This machine", "what", "found")
    table.columns[1].justify = "left"
    facts = {
        "processor": f"{environment.cpu or environment.architecture}, {environment.logical_cores} cores",
        "instructions": " ".join(environment.isa) or "not told",
        "memory": f"{environment.memory_total_mb / 1024:.1f} GB" if environment.memory_total_mb else "not told",
        "system": f"{environment.os}, kernel {environment.kernel}",
        "board": environment.jetson or environment.board or "not told",
        "GPU": ", ".join(environment.gpus) or "none found",
        "clocks": f"governor {environment.governor or 'not told'}, power mode {environment.power_mode or 'not told'}",
        "Python": environment.python,
        **environment.packages,
    }
    for name, value in facts.items():
        table.add_row(name, value)
    for runtime, version, why in versions:
        table.add_row(f"--fmt {runtime.fmt}", f"{runtime.title} {version}" if version else why)
    return table


def _number(value: float | None, digits: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if digits is None else f"{value:.{digits}f}"


def _share(share: float | None, interval: Interval | None) -> str:
    if share is None or interval is None:
        return "-"
    return f"{100 * share:.2f} ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


def _ratio(ratio: Ratio) -> str:
    interval = "" if ratio.interval is None else f" ({ratio.interval.low:.2f} to {ratio.interval.high:.2f})"
    return f"{ratio.value:.2f}{interval}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table
