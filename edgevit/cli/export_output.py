"""Lines and tables of `edgevit export`: results, notes, engines, bundles and memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from edgevit.cli.console import Part
from edgevit.cli.latency_output import latency_parts
from edgevit.cli.tables import (
    fixed,
    make_table,
    megabytes,
    notes,
    parity_parts,
    parity_phrase,
    ratio_cell,
    speed_phrase,
    worst_error,
)

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.latency.statistics import Ratio
    from edgevit.pipeline.export_run import StageTime
    from edgevit.pipeline.report import BundleReport, ExportReport
    from edgevit.runtimes.output_parity import OutputParity


def result_lines(report: ExportReport) -> list[str]:
    """Return the result of each bundle in one line: speed, parity and size."""
    ratios = _ratios(report)
    lines = []
    for bundle in report.bundles:
        precision = "" if bundle.requested_precision == "fp32" else f" {bundle.requested_precision}"
        name = f"{report.model}{precision}: {bundle.title}"
        if bundle.size_bytes is None:
            lines.append(f"{name} bundle without its engine, which has to be built on the device")
            continue
        parity = parity_phrase(_parity(report, bundle))
        if bundle.missing:
            lines.append(f"{name} engine built but not run here, graph {parity}, {megabytes(bundle.size_bytes)}")
            continue
        ratio = ratios.get(bundle.fmt)
        speed = f" {speed_phrase(ratio, _baseline_title(report))}" if ratio else ""
        lines.append(f"{name}{speed}, {parity}, {megabytes(bundle.size_bytes)}")
    comparisons = [f"{bundle.path}: {bundle.comparison.sentence}" for bundle in report.bundles if bundle.comparison]
    return lines + comparisons


def report_parts(report: ExportReport, *, detailed: bool = False) -> list[Part]:
    """Return the tables and notes of an export."""
    parts: list[Part] = [summary_table(report), *(f"wrote {bundle.path}" for bundle in report.bundles)]
    if detailed:
        parts += [bundle_table(report.bundles), *memory_parts(report.stages)]
        parts += parity_parts(report.parity.results, detailed=True) if report.parity.results else []
    if report.latencies:
        table, *rest = latency_parts(report.latencies, detailed=detailed)
        parts += [table, *rest] if detailed else rest
    return parts + notes(_notes(report))


def _notes(report: ExportReport) -> Iterator[str]:
    for bundle in report.bundles:
        yield from bundle.notes
    yield from report.parity.warnings
    if not report.parity.results:
        yield f"parity was not checked (--no-verify): the engines' outputs were not compared with {report.reference}'s"
    for bundle in report.bundles:
        if bundle.missing and bundle.size_bytes is not None:
            yield f"{bundle.fmt}: the engine was built but did not run here: {bundle.missing}"
    if report.weights_summary:
        yield report.weights_summary
    if report.preprocessing_note:
        yield report.preprocessing_note
    if report.lacks_checkpoint:
        yield "random weights: latency and parity are valid, predictions are meaningless (use --weights FILE)"
    for problem in report.latency_problems:
        yield f"no latency: {problem}"


def summary_table(report: ExportReport) -> Table:
    """Return one row for each engine that was built or measured."""
    times = {latency.name: f"{latency.p50_ms:.2f}" for latency in report.latencies}
    ratios, bundles = _ratios(report), {bundle.fmt: bundle for bundle in report.bundles}
    measured = ("p50 ms", f"time / {report.baseline}") if times else ()
    table = make_table(None, "engine", "runs", "MB", *measured, "parity")
    for name in [*(name for name in times if name not in bundles), *bundles]:
        bundle = bundles.get(name)
        parity = _parity(report, bundle) if bundle else []
        table.add_row(
            name,
            _actual_precision(bundle) if bundle else "",
            fixed(bundle.size_bytes / 1e6, 1) if bundle and bundle.size_bytes is not None else "-",
            *((times.get(name, "-"), ratio_cell(ratios.get(name))) if times else ()),
            worst_error(parity) if parity else "-",
        )
    return table


def _ratios(report: ExportReport) -> dict[str, Ratio]:
    """Return the time of each engine relative to the model's own; empty if the model was not measured."""
    from edgevit.latency.compare import side_by_side

    measured = bool(report.latencies) and report.latencies[0].name == report.baseline
    rows = side_by_side(report.latencies) if measured else ()
    return {row.report.name: row.ratio for row in rows if row.ratio is not None}


def _baseline_title(report: ExportReport) -> str:
    return "PyTorch (CPU)" if report.reference == "PyTorch" else "the file in ONNX Runtime"


def _parity(report: ExportReport, bundle: BundleReport) -> list[OutputParity]:
    """Return the parity results of a bundle: of its graph and its engine."""
    return [result for result in report.parity.results if result.stage.startswith(f"{bundle.fmt}:")]


def _actual_precision(bundle: BundleReport) -> str:
    """Return the precision that runs and its fraction of the MACs, such as "int8 97%"."""
    executed = bundle.actual_precision
    if executed is None or not executed.layers:
        return "not reported"
    precision = bundle.requested_precision
    return precision if precision == "fp32" else f"{precision} {executed.fraction(precision):.0%}"


def memory_parts(stages: Iterable[StageTime]) -> list[Part]:
    """Return the peak memory of each stage, with its child processes, and the highest of all."""
    known = [(stage.peak_mb, stage.name) for stage in stages if stage.peak_mb is not None]
    if not known:
        return []
    table = make_table("Memory", "stage", "peak MB")
    for peak_mb, name in known:
        table.add_row(name, fixed(peak_mb, 0))
    highest_mb, name = max(known)
    return [table, f"memory: at most {highest_mb:.0f} MB, in {name}"]


def bundle_table(bundles: Iterable[BundleReport]) -> Table:
    """Return one row for each bundle, with the requested precision and the precision of its layers."""
    from edgevit.runtimes.precision import ExecutedPrecision

    table = make_table("Bundles", "bundle", "opset", "nodes", "MB", "requested", "runs (layers with weights)")
    for bundle in bundles:
        actual = bundle.actual_precision or ExecutedPrecision()
        layers = ", ".join(f"{count} {name}" for name, count in actual.layers.items())
        table.add_row(
            str(bundle.path),
            str(bundle.opset),
            str(bundle.nodes),
            f"{bundle.size_bytes / 1e6:.1f}" if bundle.size_bytes is not None else "no engine",
            bundle.requested_precision,
            (layers or "not reported") if bundle.requested_precision == "fp32" else actual.summary,
        )
    return table
