"""`edgevit latency`: measure bundles side by side in one process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import edgevit
from edgevit.cli import argument_types
from edgevit.cli.console import Console, redirect_user_output
from edgevit.cli.latency_output import latency_parts, result_lines
from edgevit.cli.latency_studies import study_parts
from edgevit.cli.parser import Arguments, Command, add_source, add_threads, pytorch_source
from edgevit.cli.report import SUFFIXES, write_reports
from edgevit.errors import BundleError, ExportError, UsageError
from edgevit.files import first_line

if TYPE_CHECKING:
    from pathlib import Path

    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.source_model import PytorchSource
    from edgevit.latency.report import LatencyReport

_DEFAULT_MAX_SLOWDOWN = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit latency`."""
    _add_candidates(parser)
    _add_studies(parser)
    parser.add_argument(
        "--report",
        type=argument_types.paths,
        action="extend",
        default=[],
        metavar="FILES",
        help=f"write a report: {SUFFIXES}, or several, comma-separated",
    )
    _add_checks(parser)


def _add_candidates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        type=argument_types.path,
        nargs="+",
        metavar="BUNDLE",
        help="a bundle folder; the first is the reference",
    )
    add_threads(parser)
    parser.add_argument(
        "--duration",
        type=float,
        default=3.0,
        metavar="S",
        help="seconds for each bundle, and at least 16 rounds and 100 runs; up to three times as many rounds if no "
        "verdict is clear before (default: 3)",
    )
    parser.add_argument(
        "--against",
        type=argument_types.names,
        default=(),
        metavar="NAMES",
        help="also measure torch, torch-cuda, torch-compile, naive-onnx (torch.onnx.export as it is), ov-direct "
        "(openvino.convert_model as it is) or other formats, comma-separated",
    )
    add_source(parser, needed_for="--against torch")


def _add_studies(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("studies, made of each bundle after the measurement")
    group.add_argument(
        "--roofline",
        action="store_true",
        help="also measure the machine's matrix products and copies, and print the fraction of that limit",
    )
    group.add_argument(
        "--layers", action="store_true", help="also profile the layers, by PyTorch module and kind of operator"
    )
    group.add_argument(
        "--throughput",
        action="store_true",
        help="also raise batches and parallel inferences until the images per second stop growing",
    )
    group.add_argument(
        "--sustained",
        type=argument_types.seconds,
        metavar="TIME",
        help="also run each bundle without a pause for a time such as 60s or 10min, and compare its end with its start",
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require-locked",
        action="store_true",
        help="end with status 7, before measuring, unless the clocks are locked",
    )
    parser.add_argument(
        "--baseline", type=argument_types.path, metavar="FILE", help="compare with an earlier result, written by --json"
    )
    parser.add_argument(
        "--max-slowdown",
        type=argument_types.percentage,
        metavar="P%",
        help="allowed slowdown against the baseline (default: 10%%)",
    )


def run(arguments: Arguments, console: Console) -> int:
    """Measure the latency of bundles, and compare it with a baseline if one is given."""
    from edgevit.bundles.benchmark import measure_bundles, measure_plan, runs_on_gpu
    from edgevit.bundles.bundle import Bundle, display_names
    from edgevit.latency import baseline, settings
    from edgevit.latency.compare import latency_json
    from edgevit.latency.document.write import require_report_paths
    from edgevit.latency.environment import Environment
    from edgevit.latency.studies import Studies

    slowdown = _max_slowdown(arguments)
    require_report_paths(arguments.report)
    studies = Studies(
        roofline=arguments.roofline,
        layers=arguments.layers,
        throughput=arguments.throughput,
        sustained_s=arguments.sustained,
    )
    bundles = [Bundle.open(path) for path in arguments.bundle]
    names = display_names(bundles)
    stored = baseline.read_baseline(arguments.baseline, names) if arguments.baseline else {}
    source = _source(arguments)
    if arguments.require_locked:
        settings.require_locked(Environment.capture(), on_gpu=runs_on_gpu(bundles, arguments.against))
    with redirect_user_output(), console.measure_progress() as on_progress:
        reports = measure_bundles(
            bundles,
            against=arguments.against,
            source=source,
            threads=arguments.threads,
            plan=measure_plan(arguments.duration),
            studies=studies,
            on_progress=on_progress,
        )
    kept = [_keep(bundle, reports) for bundle in bundles]
    checks = baseline.check_baseline(reports, stored, max_slowdown=slowdown)
    console.result(*result_lines(reports), *(check.sentence for check in checks))
    parts = [*latency_parts(reports, detailed=console.detailed), *study_parts(reports)]
    console.print(*parts, *(note for note in kept if note))
    result = {"latency": latency_json(reports), "baseline": [check.to_json() for check in checks]}
    try:
        console.result(*_written(bundles, reports, arguments.report))
    except UsageError as error:
        return console.fail(error, result=result)
    failure = baseline.first_failure(checks)
    if failure is not None:
        return console.fail(failure, result=result)
    console.finish(result)
    return 0


def _max_slowdown(arguments: Arguments) -> float:
    """Return the allowed slowdown, as a fraction. Raises UsageError if it is impossible or compared with nothing."""
    from edgevit.latency.compare import require_allowance

    if arguments.max_slowdown is not None and arguments.baseline is None:
        raise UsageError("--max-slowdown requires --baseline FILE")
    slowdown: float = _DEFAULT_MAX_SLOWDOWN if arguments.max_slowdown is None else arguments.max_slowdown
    require_allowance(slowdown)
    return slowdown


def _source(arguments: Arguments) -> PytorchSource:
    """Return the model to compare with. Raises UsageError if one is given and nothing is compared with PyTorch."""
    from edgevit.bundles.benchmark import FROM_PYTORCH
    from edgevit.bundles.source_model import FROM_MANIFEST

    source = pytorch_source(arguments)
    if not set(FROM_PYTORCH) & set(arguments.against) and source != FROM_MANIFEST:
        raise UsageError(f"--model, --arg and --weights require --against with one of {', '.join(FROM_PYTORCH)}")
    return source


def _written(bundles: Sequence[Bundle], reports: Sequence[LatencyReport], paths: Sequence[Path]) -> list[str]:
    """Write the reports that --report asks for; return a line for each."""
    from edgevit.bundles.report import measured_document

    if not paths:
        return []
    return write_reports(measured_document(bundles, reports, edgevit_version=edgevit.__version__), paths)


def _keep(bundle: Bundle, reports: Sequence[LatencyReport]) -> str:
    """Store the measurement in the bundle; return a note if that is not possible."""
    from edgevit.bundles.latency_file import keep_latency

    try:
        keep_latency(bundle, reports)
    except (BundleError, ExportError, OSError) as error:
        return f"note: not kept in {bundle.path} ({first_line(error).partition(';')[0]})"
    return ""


COMMAND = Command(name="latency", help="measure bundles side by side", add_arguments=add_arguments, run=run)
