"""Lines and tables of measured latencies: comparison, conditions, percentiles, parity, sensors, energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgevit.cli.console import Part
from edgevit.cli.tables import fixed, make_table, notes_by_name, ratio_cell, speed_phrase
from edgevit.cpu import int8_instructions
from edgevit.latency.names import short_names

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.latency.report import LatencyReport
    from edgevit.types import Interval


def result_lines(reports: Sequence[LatencyReport]) -> list[str]:
    """Return the comparison with the first engine in one line each, or the time of a single one."""
    from edgevit.latency.compare import side_by_side

    first, *others = side_by_side(reports)
    if not others:
        throughput = f"{first.report.throughput_per_s:.1f} images/s"
        return [f"{first.report.name}: p50 {first.report.p50_ms:.2f} ms, {throughput}, {_batches(reports)}"]
    return [f"{row.report.name}: {speed_phrase(row.ratio, first.report.name)}" for row in others if row.ratio]


def latency_parts(reports: Sequence[LatencyReport], *, detailed: bool = False) -> list[Part]:
    """Return the latency table, its conditions, and the warnings that a reader needs to interpret it."""
    precisions = {report.name: report.details["precision"] for report in reports if "precision" in report.details}
    mixed = []
    if len(set(precisions.values())) > 1:
        listed = ", ".join(f"{name} {precision}" for name, precision in precisions.items())
        mixed = [f"note: different precisions: {listed}"]
    names = short_names([report.name for report in reports])
    warnings = notes_by_name({name: report.warnings for name, report in zip(names, reports, strict=True)})
    alone = [
        f"note: {report.name}: its clock varied in turns; alone, its p50 is {report.alone_p50_ms:.2f} ms"
        for report in reports
        if report.alone_p50_ms is not None
    ]
    details = [
        *(_percentiles(reports) if detailed else []),
        *_parity(reports),
        *_sampling(reports[0]),
        *_energies(reports),
        *alone,
    ]
    return [latency_table(reports, detailed=detailed), _conditions(reports), *details, *mixed, *warnings]


def latency_table(reports: Sequence[LatencyReport], *, detailed: bool = False) -> Table:
    """Return one row for each engine of an interleaved run, compared with the first. `detailed` adds columns."""
    from edgevit.latency.compare import side_by_side

    names = short_names([report.name for report in reports])
    cells = {name: cell for name, cell in _COLUMNS.items() if detailed or name in _SHORT_COLUMNS}
    for name in _OPTIONAL_COLUMNS:
        if all(_COLUMNS[name](report) == "-" for report in reports):
            cells.pop(name, None)
    table = make_table("Latency, side by side", "engine", *cells, f"time / {names[0]}", "verdict")
    for name, row in zip(names, side_by_side(reports), strict=True):
        figures = [cell(row.report) for cell in cells.values()]
        table.add_row(name, *figures, ratio_cell(row.ratio), "" if row.ratio is None else row.ratio.verdict)
    return table


_COLUMNS: dict[str, Callable[[LatencyReport], str]] = {
    "p50 ms": lambda report: fixed(report.p50_ms, 2),
    "GPU ms": lambda report: fixed(report.compute_p50_ms, 2),
    "p90 ms": lambda report: fixed(report.p90_ms, 2),
    "p99 ms": lambda report: fixed(report.p99_ms, 2),
    "mean ms": lambda report: fixed(report.mean_ms, 2),
    "images/s": lambda report: fixed(report.throughput_per_s, 1),
    "load s": lambda report: fixed(report.load_s, 2),
    "first ms": lambda report: fixed(report.first_inference_ms, 1),
    "rise MB": lambda report: fixed(report.memory_rise_mb, 0),
    "host MB": lambda report: fixed(report.peak_memory_mb, 0),
    "GPU MB": lambda report: fixed(report.device_memory_mb, 0),
    "runs": lambda report: str(report.runs),
}
_SHORT_COLUMNS = ("p50 ms", "GPU ms", "images/s", "host MB", "GPU MB")
_OPTIONAL_COLUMNS = ("GPU ms", "first ms", "rise MB", "host MB", "GPU MB")  # left out if no engine has a value


def _conditions(reports: Sequence[LatencyReport]) -> str:
    """Return the conditions of a measurement in one line."""
    from edgevit.latency.compare import device_name

    first = reports[0]
    instructions = int8_instructions(first.environment.isa)
    device = f"{device_name(reports)} ({instructions})"
    conditions = f"{_batches(reports)}, {_threads(reports)} threads, one process, random order; {device}"
    rises = [
        f"{name} {rise.per_s:.1f}/s" for name, rise in first.throttle_events.items() if rise.count > 0 and rise.per_s
    ]
    return "; ".join((conditions, *rises))


def _threads(reports: Sequence[LatencyReport]) -> str:
    """Return the number of threads, of each engine if they differ."""
    counts = [str(report.threads or "all") for report in reports]
    if len(set(counts)) == 1:
        return counts[0]
    names = short_names([report.name for report in reports])
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


def _percentiles(reports: Sequence[LatencyReport]) -> list[str]:
    """Return one line for each engine with its percentiles and their intervals, and those of its time on the GPU."""
    from edgevit.latency.compare import PERCENTS

    lines = []
    for name, report in zip(short_names([report.name for report in reports]), reports, strict=True):
        host = [
            (percent, report.percentile(percent).value, report.percentile_interval_ms(percent)) for percent in PERCENTS
        ]
        gpu = [(percent, *report.compute_percentile(percent)) for percent in PERCENTS]
        parts = [_percentile_list("ms", host), *([_percentile_list("ms on the GPU", gpu)] if report.compute_ms else [])]
        lines.append(f"percentiles: {name} {'; '.join(parts)}")
    return lines


def _percentile_list(unit: str, found: Sequence[tuple[int, float | None, Interval | None]]) -> str:
    texts = []
    for percent, value, interval in found:
        within = "" if interval is None else f" ({interval.low:.3g} to {interval.high:.3g})"
        texts.append(f"p{percent} {'-' if value is None else f'{value:.3g}'}{within}")
    return f"{', '.join(texts)} {unit}"


def _parity(reports: Sequence[LatencyReport]) -> list[str]:
    """Return one line on how the outputs of each engine compare with the reference; none if they were not compared."""
    phrases = []
    for name, report in zip(short_names([report.name for report in reports]), reports, strict=True):
        parity = report.parity
        if parity is None:
            continue
        error = "" if parity.max_error_std is None else f" ({parity.max_error_std:.0e} std)"
        phrases.append(f"{name} {'passes' if parity.passed else 'WRONG'}{error}")
    return [f"parity with the reference: {', '.join(phrases)}"] if phrases else []


def _sampling(report: LatencyReport) -> list[str]:
    """Return one line on the device while the engines worked; none if it has no sensors."""
    from edgevit.latency.document.figures import whole_range

    trace = report.trace
    if trace is None or not trace.costs_ms:
        return []
    clocks = trace.clock_ranges(report.name, on_gpu=report.uses_gpu)
    hottest = max((high for _, _, high in trace.spread(report.name, "temperature").values()), default=None)
    found = [
        *(f"{name} {whole_range(low, high)} MHz" for name, (low, high) in clocks.items()),
        *(f"{name} {power:.1f} W" for name, power in report.power_w.items()),
        *([] if hottest is None else [f"hottest sensor {hottest:.0f} C"]),
    ]
    rate = "" if trace.rate_hz is None else f" at {trace.rate_hz:.1f} Hz"
    cost = f"sampled {len(trace.costs_ms)} times{rate}, {fixed(trace.cost_ms, 1)} ms each, never while a run was timed"
    return [f"device: {'; '.join([', '.join(found), cost] if found else [cost])}"]


def _energies(reports: Sequence[LatencyReport]) -> list[str]:
    """Return the energy of an inference of each engine, in one line for each counter."""
    from edgevit.latency.document.figures import millijoules

    lines: dict[str, list[str]] = {}
    for report in reports:
        for source, energy in report.energy_per_inference.items():
            lines.setdefault(source, []).append(f"{report.name} {millijoules(energy)}")
    return [f"energy above idle by {source}, mJ per batch: {', '.join(engines)}" for source, engines in lines.items()]


def _batches(reports: Sequence[LatencyReport]) -> str:
    batches = [report.batch for report in reports]
    if len(set(batches)) == 1:
        return f"batch {batches[0]}"
    return f"batches {', '.join(map(str, batches))} (times are per batch, ratios per image)"
