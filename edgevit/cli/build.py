"""`edgevit build`: build the engine of a bundle on this machine."""

from __future__ import annotations

import argparse
import shlex

from edgevit.cli import parser as argument_types
from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command, add_threads
from edgevit.cli.tables import parity_parts, parity_phrase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit build`."""
    parser.add_argument("bundle", type=argument_types.path, metavar="BUNDLE", help="a bundle folder")
    parser.add_argument("--fmt", metavar="FMT", help="build for another runtime than the bundle's own")
    add_threads(parser)
    parser.add_argument("--workspace", type=int, metavar="MB", help="memory limit of a TensorRT builder")


def run(arguments: Arguments, console: Console) -> int:
    """Build and verify the engine of a bundle; PyTorch is not needed."""
    from edgevit.bundles.build import build
    from edgevit.bundles.bundle import Bundle

    with console.stage_progress() as on_stage:
        bundle, parity = build(
            Bundle.open(arguments.bundle),
            fmt=arguments.fmt,
            threads=arguments.threads,
            workspace_mb=arguments.workspace,
            on_phase=lambda phase, done: on_stage(f"{phase} {done:.0%}", None),
        )
    console.result(f"{bundle.path}: {parity_phrase(parity.results)}")
    console.print(*parity_parts(parity.results, detailed=console.detailed))
    next_command = f"edgevit latency {shlex.quote(str(bundle.path))}"
    console.finish({"path": str(bundle.path), "parity": parity.to_json()}, next_command=next_command)
    return 0


COMMAND = Command(
    name="build",
    help="build a bundle's engine on this machine, from its ONNX file",
    add_arguments=add_arguments,
    run=run,
)
