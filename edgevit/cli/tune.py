"""`edgevit tune`: find the fastest engine of a model on this machine."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.cli import argument_types
from edgevit.cli.console import Console, Part, redirect_user_output
from edgevit.cli.model_arguments import (
    add_model_arguments,
    add_preprocessing_arguments,
    load_model,
    require_current_folder,
)
from edgevit.cli.parser import Arguments, Command, Group, add_images, add_int8_range, add_strict
from edgevit.cli.tables import fixed, make_table, notes, ratio_cell
from edgevit.memory import EXPORT_MB, require_address_space

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.pipeline.tuning.report import Row, TuningReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit tune`."""
    parser.usage = "%(prog)s MODEL [OPTION]..."
    add_model_arguments(parser)
    add_preprocessing_arguments(parser.add_argument_group("preprocessing", "each replaces the model's own setting"))
    _add_search_arguments(parser.add_argument_group("search"))
    _add_accuracy_arguments(parser.add_argument_group("accuracy"))


def _add_search_arguments(group: Group) -> None:
    group.add_argument(
        "--time",
        type=argument_types.seconds,
        default=600.0,
        metavar="T",
        help="limit of the whole command, such as 90s, 10m or 1h (default: 10m)",
    )
    group.add_argument(
        "--fmt",
        type=argument_types.names,
        default=(),
        metavar="FMT[,FMT]",
        help="the formats to try (default: all whose runtime is installed)",
    )
    group.add_argument(
        "--threads",
        type=argument_types.counts,
        default=(),
        metavar="N[,N]",
        help="numbers of CPU threads to try (default: all cores, and half of them)",
    )
    group.add_argument("--batch", type=int, metavar="N", help="static batch size (default: 1)")
    group.add_argument(
        "--throughput",
        action="store_true",
        help="find the most images per second, with several inferences at once and larger batches, not the lowest "
        "latency",
    )
    group.add_argument("--fresh", action="store_true", help="discard what an unfinished search has left")
    group.add_argument(
        "--out",
        type=argument_types.path,
        default=Path(),
        metavar="DIR",
        help="folder for the recommended bundle (default: current folder)",
    )


def _add_accuracy_arguments(group: Group) -> None:
    group.add_argument(
        "--calib", type=argument_types.path, metavar="DIR", help="calibration images; without them int8 is not tried"
    )
    group.add_argument(
        "--eval",
        type=argument_types.path,
        metavar="DIR",
        help="labeled images on which top-1, mAP or mIoU is measured",
    )
    group.add_argument(
        "--max-drop",
        type=argument_types.percentage,
        metavar="P%",
        help="largest loss of top-1, mAP or mIoU against the original, such as 0.5%% (default: 1%% with --eval)",
    )
    add_int8_range(group, default=None, default_text="full if this processor computes it correctly")
    add_images(group)
    add_strict(group)


def run(arguments: Arguments, console: Console) -> int:
    """Find the fastest engine of a model within the time, and write its bundle."""
    start_s = time.monotonic()  # before PyTorch is imported, which takes seconds
    require_current_folder()
    require_address_space(EXPORT_MB, user="edgevit tune")
    from edgevit.pipeline.tuning.config import TuneConfig
    from edgevit.pipeline.tuning.tune import tune

    config = TuneConfig(
        formats=arguments.fmt,
        threads=arguments.threads,
        limit_s=arguments.time,
        calib=arguments.calib,
        eval=arguments.eval,
        max_drop=arguments.max_drop,
        int8_range=arguments.int8_range,
        images=arguments.images,
        strict=arguments.strict,
        out=arguments.out,
        throughput=arguments.throughput,
        fresh=arguments.fresh,
        start_s=start_s,
    )
    with redirect_user_output():
        model = load_model(arguments)
    with redirect_user_output(), console.stage_progress() as on_stage:
        report = tune(model, config, on_stage)
    console.result(report.sentence)
    console.print(*report_parts(report, detailed=console.detailed))
    console.finish(report.result_json(), next_command=report.next_command)
    return 0


def report_parts(report: TuningReport, *, detailed: bool = False) -> list[Part]:
    """Return the table of the engines and what else the search found."""
    parts: list[Part] = [engine_table(report)]
    if detailed:
        parts += [race_table(report)]
    parts.append(_legend(report))
    parts.append(f"wrote {report.path}; {report.elapsed_s:.0f} of {report.limit_s:.0f} s")
    lines = [f"refused: {each.name}: {each.reason}" for each in report.refused]
    if report.not_tried:
        lines.append(f"not tried: {', '.join(report.not_tried)}")
    if report.not_installed and detailed:
        lines.append(f"not installed: {', '.join(report.not_installed)}")
    if report.cached:
        lines.append("edgevit export --fmt auto uses this result here, for the same weights")
    return [*parts, *notes([*lines, *report.notes])]


def _legend(report: TuningReport) -> str:
    """Return what the Pareto front compares; there may have been no time to measure the memory."""
    from edgevit.pipeline.tuning.report import compares_memory

    if compares_memory(report.rows):
        return "* Pareto-optimal in time, accuracy, size (MB of 10^6) and peak RAM (MB of 2^20)"
    return "* Pareto-optimal in time, accuracy and size (MB of 10^6)"


def engine_table(report: TuningReport) -> Table:
    """Return one row for each engine of the final measurement; * marks the Pareto front."""
    from edgevit.pipeline.tuning.report import pareto_front

    front = {row.name for row in pareto_front(report.rows)}
    reference = report.reference.configuration.variant.name
    checks = [row.verification for row in report.rows if row.verification is not None]
    metric = next((check.evaluation.metric for check in checks if check.evaluation is not None), None)
    accuracy = f"{metric} %" if metric else "SNR dB"
    speed = "images/s" if report.under_load else "p50 ms"
    table = make_table(None, "engine", "settings", speed, f"time / {reference}", accuracy, "MB", "RAM", left=2)
    for row in report.rows:
        table.add_row(
            f"{'*' if row.name in front else ' '} {row.configuration.variant.name}",
            row.configuration.settings,
            fixed(row.images_per_s, 1) if report.under_load else fixed(row.p50_ms, 2),
            ratio_cell(row.ratio),
            _accuracy(row, measured=metric is not None),
            fixed(row.size_bytes / 1e6, 1),
            fixed(row.latency.peak_memory_mb, 0),
        )
    return table


def _accuracy(row: Row, *, measured: bool) -> str:
    """Return the accuracy of an engine, or "refused", or "-" if there was no time to check it."""
    found = row.verification
    if found is None:
        return "-"
    if found.failure:
        return "refused"
    if measured:
        return fixed(None if found.evaluation is None else 100 * found.evaluation.accuracy, 1)
    return fixed(found.snr_db, 0)


def race_table(report: TuningReport) -> Table:
    """Return one row for each candidate of each race."""
    time_of = "ms / image" if report.under_load else "p50 ms"
    table = make_table("Races", "race", "candidate", time_of, "time / fastest", "runs", "", left=2)
    for title, outcome in report.races:
        for standing in outcome.standings:
            interval = standing.interval
            ratio = f"{standing.ratio:.2f}"
            within = "" if interval is None else f" ({interval.low:.2f} to {interval.high:.2f})"
            verdict = "slower" if standing.dropped else ""
            time_ms = standing.p50_ms / standing.images if report.under_load else standing.p50_ms
            cells = (f"{time_ms:.2f}", f"{ratio}{within}", str(standing.runs), verdict)
            table.add_row(title, standing.name, *cells)
    return table


COMMAND = Command(
    name="tune",
    help="find the fastest engine of a model on this machine, by measuring",
    add_arguments=add_arguments,
    run=run,
    if_stopped="what was measured stays in the cache; run it again, without --fresh, to go on",
)
