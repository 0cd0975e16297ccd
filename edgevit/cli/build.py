"""`edgevit build`: build the engine of a bundle on this machine."""

from __future__ import annotations

import argparse
import shlex

from edgevit.cli import argument_types
from edgevit.cli.console import Console
from edgevit.cli.latency_output import latency_parts
from edgevit.cli.parser import Arguments, Command, add_threads, add_workspace
from edgevit.cli.tables import parity_parts, parity_phrase

_MAX_LATENCY_S = 30.0  # of the whole measurement; `edgevit latency` measures longer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit build`."""
    parser.add_argument("bundle", type=argument_types.path, metavar="BUNDLE", help="a bundle folder")
    parser.add_argument("--fmt", metavar="FMT", help="build for another runtime than the bundle's own")
    add_threads(parser)
    add_workspace(parser)
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="skip the latency measurement")


def run(arguments: Arguments, console: Console) -> int:
    """Build and verify the engine of a bundle; PyTorch is not needed."""
    from edgevit.bundles.build import build
    from edgevit.bundles.bundle import Bundle
    from edgevit.latency.compare import latency_json
    from edgevit.latency.plan import MeasurePlan

    with console.stage_progress() as on_stage:
        built = build(
            Bundle.open(arguments.bundle),
            fmt=arguments.fmt,
            threads=arguments.threads,
            workspace_mb=arguments.workspace,
            plan=MeasurePlan(max_total_s=_MAX_LATENCY_S) if arguments.latency else None,
            on_phase=lambda phase, done: on_stage(f"{phase} {done:.0%}", None),
        )
    bundle, parity = built.bundle, built.parity
    time = [f"p50 {report.p50_ms:.2f} ms" for report in built.latency]
    console.result(f"{bundle.path}: {', '.join([parity_phrase(parity.results), *time])}")
    console.print(*parity_parts(parity.results, detailed=console.detailed))
    console.print(*(latency_parts(built.latency, detailed=console.detailed) if built.latency else ()))
    if built.latency_problem:
        console.print(f"note: no latency: {built.latency_problem}")
    next_command = f"edgevit latency {shlex.quote(str(bundle.path))}"
    console.finish(
        {
            "path": str(bundle.path),
            "parity": parity.to_json(),
            "latency": latency_json(built.latency),
            "latency_problem": built.latency_problem,
        },
        next_command=next_command,
    )
    return 0


COMMAND = Command(
    name="build",
    help="build a bundle's engine on this machine, from its ONNX file",
    add_arguments=add_arguments,
    run=run,
)
