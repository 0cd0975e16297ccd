"""`edgevit optimize`: write an ONNX file in the operator forms that a runtime runs fastest."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgevit.cli import argument_types
from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command, add_input_shape, add_threads
from edgevit.cli.tables import make_table, parity_phrase
from edgevit.formats import list_formats

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.pipeline.optimize_file import OptimizedFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit optimize`."""
    parser.add_argument("file", type=argument_types.path, metavar="FILE.onnx", help="an ONNX file of any origin")
    names = ", ".join(entry.name for entry in list_formats())
    parser.add_argument("--fmt", required=True, metavar="FMT", help=f"{names}, or an alias")
    parser.add_argument(
        "--out", type=argument_types.path, metavar="FILE", help="the file to write (default: FILE.FMT.onnx)"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX opset (default: the best one for the format)")
    add_input_shape(parser, help_text="shape of an input with dynamic axes besides the batch; repeat it for each")
    add_threads(parser)


def run(arguments: Arguments, console: Console) -> int:
    """Optimize a file and compare the result with it."""
    from edgevit.pipeline.optimize_file import optimize_file

    done = optimize_file(
        arguments.file,
        arguments.fmt,
        out=arguments.out,
        opset=arguments.opset,
        shapes=dict(arguments.input_shape or ()),
        threads=arguments.threads,
    )
    console.result(result_line(done))
    if console.detailed:
        console.print(pass_table(done))
    console.finish(
        {
            "path": str(done.path),
            "fmt": done.fmt,
            "opset": done.opset,
            "nodes_before": done.nodes_before,
            "nodes_after": done.nodes_after,
            "passes": [{"name": each.name, "nodes": each.nodes_after, "note": each.note} for each in done.history],
            "parity": done.parity.to_json(),
        }
    )
    return 0


def result_line(done: OptimizedFile) -> str:
    """Return the result in one line: nodes, opset and parity with the original file."""
    parity = parity_phrase(list(done.parity.results))
    return f"{done.path}: {done.nodes_after} nodes of {done.nodes_before}, opset {done.opset}, {parity}"


def pass_table(done: OptimizedFile) -> Table:
    """Return one row for each pass that changed the number of nodes."""
    table = make_table("Passes", "pass", "nodes before", "nodes after")
    for each in done.history:
        if each.nodes_before != each.nodes_after:
            table.add_row(each.name, str(each.nodes_before), str(each.nodes_after))
    return table


COMMAND = Command(
    name="optimize", help="optimize an ONNX file for a runtime, without a bundle", add_arguments=add_arguments, run=run
)
