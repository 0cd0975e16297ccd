"""`edgevit report`: the latency report of bundles, from the measurements that they keep."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import edgevit
from edgevit.cli import argument_types
from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command

if TYPE_CHECKING:
    from edgevit.latency.document.content import Document

SUFFIXES = "FILE.html, .md, .csv or .json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit report`."""
    parser.add_argument(
        "bundle", type=argument_types.path, nargs="+", metavar="BUNDLE", help="a bundle folder that was measured"
    )
    parser.add_argument(
        "--out",
        type=argument_types.paths,
        action="extend",
        default=[],
        metavar="FILES",
        help=f"{SUFFIXES}, or several, comma-separated (default: Markdown on stdout)",
    )


def run(arguments: Arguments, console: Console) -> int:
    """Write the report of the measurements that bundles keep."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.report import kept_document
    from edgevit.latency.document.json_file import document_json
    from edgevit.latency.document.markdown import markdown_page
    from edgevit.latency.document.write import require_report_paths

    require_report_paths(arguments.out)
    document = kept_document([Bundle.open(path) for path in arguments.bundle], edgevit_version=edgevit.__version__)
    if arguments.out:
        console.result(*write_reports(document, arguments.out))
    else:
        console.result(markdown_page(document).rstrip("\n"))
    console.finish({"report": document_json(document)})
    return 0


def write_reports(document: Document, paths: Sequence[Path]) -> list[str]:
    """Write a document to each file; return a line for each session, and one for each file."""
    from edgevit.latency.document.escape import printable
    from edgevit.latency.document.verdict import headline
    from edgevit.latency.document.write import write_report

    for path in paths:
        write_report(document, path)
    verdicts = [printable(f"{session.device}: {headline(session)}") for session in document.sessions]
    return [*verdicts, *(f"report: {path}" for path in paths)]


COMMAND = Command(
    name="report",
    help="write the latency report of measured bundles as HTML, Markdown, CSV or JSON",
    add_arguments=add_arguments,
    run=run,
)
