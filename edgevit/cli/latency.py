"""`edgevit latency`: measure bundles side by side in one process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgevit.cli import parser as types
from edgevit.cli.console import Console, Part
from edgevit.cli.parser import Arguments, Command, add_threads
from edgevit.cli.tables import fixed, make_table
from edgevit.cpu import int8_instructions
from edgevit.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.latency.report import LatencyReport
    from edgevit.latency.statistics import Ratio

_DEFAULT_MAX_SLOWDOWN = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit latency`."""
    parser.add_argument(
        "bundle", type=types.path, nargs="+", metavar="BUNDLE", help="a bundle folder; the first is the reference"
    )
    add_threads(parser)
    parser.add_argument(
        "--duration", type=float, default=3.0, metavar="S", help="minimum seconds for each bundle (default: 3)"
    )
    parser.add_argument(
        "--against",
        type=types.names,
        default=(),
        metavar="NAMES",
        help="also measure torch or other formats, comma-separated",
    )
    parser.add_argument(
        "--baseline", type=types.path, metavar="FILE", help="compare with an earlier result, written by --json"
    )
    parser.add_argument(
        "--max-slowdown",
        type=types.percentage,
        metavar="P%",
        help="allowed slowdown against the baseline (default: 10%%)",
    )


def run(arguments: Arguments, console: Console) -> int:
    """Measure the latency of bundles, and compare it with a baseline if one is given."""
    from edgevit.bundles.benchmark import measure_bundles
    from edgevit.bundles.bundle import Bundle, display_names
    from edgevit.latency import baseline, compare
    from edgevit.pipeline.report import latency_json

    if arguments.max_slowdown is not None and arguments.baseline is None:
        raise UsageError("--max-slowdown requires --baseline FILE")
    slowdown = _DEFAULT_MAX_SLOWDOWN if arguments.max_slowdown is None else arguments.max_slowdown
    compare.require_allowance(slowdown)
    bundles = [Bundle.open(path) for path in arguments.bundle]
    names = display_names(bundles)
    stored = baseline.read_baseline(arguments.baseline, names) if arguments.baseline else {}
    reports = measure_bundles(
        bundles, against=arguments.against, threads=arguments.threads, duration_s=arguments.duration
    )
    checks = baseline.check_baseline(reports, stored, max_slowdown=slowdown)
    console.print(*latency_parts(reports), *(check.sentence for check in checks))
    result = {"latency": latency_json(reports), "baseline": [check.to_json() for check in checks]}
    failure = baseline.first_failure(checks)
    if failure is not None:
        return console.fail(failure, result=result)
    console.finish(result)
    return 0


def latency_parts(reports: Sequence[LatencyReport]) -> list[Part]:
    """Return the latency table and the warnings that a reader needs to interpret it."""
    warnings = [f"{report.name}: {warning}" for report in reports for warning in report.warnings]
    precisions = {report.name: report.details["precision"] for report in reports if "precision" in report.details}
    if len(set(precisions.values())) > 1:
        listed = ", ".join(f"{name} {precision}" for name, precision in precisions.items())
        warnings.insert(0, f"different precisions: {listed}")
    return [latency_table(reports), *(f"note: {warning}" for warning in warnings)]


def latency_table(reports: Sequence[LatencyReport]) -> Table:
    """Return one row for each engine of an interleaved run, compared with the first."""
    from edgevit.latency.compare import side_by_side

    with_peak = any(report.peak_memory_mb is not None for report in reports)
    table = make_table("Latency, side by side", "engine", "p50 ms", "p90 ms", "p99 ms", "mean ms", "images/s", "load s",
                       "first ms", "rise MB", *["peak MB"] * with_peak, "runs", f"time / {reports[0].name}",
                       "verdict")  # fmt: skip
    for row in side_by_side(reports):
        report, ratio = row.report, row.ratio
        table.add_row(
            report.name,
            f"{report.p50_ms:.2f}",
            *(fixed(value, 2) for value in (report.p90_ms, report.p99_ms)),
            f"{report.mean_ms:.2f}",
            f"{report.throughput_per_s:.1f}",
            fixed(report.load_s, 2),
            fixed(report.first_inference_ms, 1),
            fixed(report.memory_rise_mb, 0),
            *[fixed(report.peak_memory_mb, 0)] * with_peak,
            str(report.runs),
            "" if ratio is None else _ratio(ratio),
            "" if ratio is None else ratio.verdict,
        )
    first = reports[0]
    table.caption = (
        f"{_batches(reports)}, {first.threads or 'all'} threads, one process, turns in random order; "
        "-: too few runs for the percentile (p90 needs 64, p99 662). "
        f"{first.environment.cpu or first.environment.architecture} ({int8_instructions(first.environment.isa)})"
    )
    return table


def _batches(reports: Sequence[LatencyReport]) -> str:
    batches = [report.batch for report in reports]
    if len(set(batches)) == 1:
        return f"batch {batches[0]}"
    return f"batches {', '.join(map(str, batches))} (times are per batch, ratios per image)"


def _ratio(ratio: Ratio) -> str:
    interval = "" if ratio.interval is None else f" ({ratio.interval.low:.2f} to {ratio.interval.high:.2f})"
    return f"{ratio.value:.2f}{interval}"


COMMAND = Command(name="latency", help="measure bundles side by side", add_arguments=add_arguments, run=run)
