"""`edgevit lint`: find nodes that a runtime does not support or runs slowly."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgevit.cli import argument_types
from edgevit.cli.console import Console, Part
from edgevit.cli.parser import Arguments, Command
from edgevit.export.lint.targets import LINTABLE
from edgevit.formats import DEFAULT_TENSORRT, get_format
from edgevit.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.export.lint.findings import Finding
    from edgevit.export.lint.targets import LintTarget

LINT_ERRORS = 1  # exit status
MAX_NODES = 3  # nodes that the table names for one kind of finding
_STYLES = {"error": "bold red", "warning": "bold", "note": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit lint`."""
    parser.add_argument(
        "file", type=argument_types.path, metavar="FILE.onnx|BUNDLE", help="an ONNX file, or a bundle folder"
    )
    *most, last = (word for fmt in LINTABLE for word in _spellings(fmt))
    parser.add_argument("--target", required=True, metavar="TARGET", help=f"{', '.join(most)} or {last}")


def _spellings(fmt: str) -> list[str]:
    """Return the forms of `--target` for a format."""
    return [fmt, f"{fmt}:{DEFAULT_TENSORRT} (with a version)"] if get_format(fmt).versioned_parser else [fmt]


def run(arguments: Arguments, console: Console) -> int:
    """Print the findings. Return 1 if there is an error among them."""
    from edgevit.bundles.bundle import model_file
    from edgevit.export.graph import OnnxGraph
    from edgevit.export.lint.findings import has_errors
    from edgevit.export.lint.rules import lint
    from edgevit.export.lint.targets import parse_target

    target = parse_target(arguments.target)
    findings = lint(OnnxGraph.read(model_file(arguments.file)), target)
    summary, *tables = lint_parts(findings, target)
    console.result(summary)
    console.print(*tables)
    console.finish(lint_json(findings, target))
    return LINT_ERRORS if has_errors(findings) else 0


def lint_parts(findings: Sequence[Finding], target: LintTarget) -> list[Part]:
    """Return a summary, and a table with one row for each kind of finding."""
    return [lint_summary(findings, target), *([lint_table(findings)] if findings else [])]


def lint_table(findings: Iterable[Finding]) -> Table:
    """Return one row for each kind of finding: level, nodes, reason and remedy."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, show_lines=True)
    for column, ratio in (("finding", None), ("nodes", 2), ("reason and remedy", 3)):
        table.add_column(column, overflow="fold", ratio=ratio)
    kinds: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.rule, finding.why, finding.remedy), []).append(finding)
    for (level, rule, reason, remedy), group in kinds.items():
        table.add_row(
            Text.assemble((level, _STYLES[level]), f"\n{rule}"),
            Text("\n".join(_node_lines(group))),
            Text(f"{reason}\n-> {remedy}"),
        )
    return table


def lint_summary(findings: Iterable[Finding], target: LintTarget) -> str:
    """Return the number of findings of each level in one line."""
    from edgevit.export.lint.findings import LEVELS

    counts = Counter(finding.level for finding in findings)
    if not counts:
        return f"{target}: no problems found"
    return f"{target}: " + ", ".join(counted(counts[level], level) for level in LEVELS if counts[level])


def lint_json(findings: Sequence[Finding], target: LintTarget) -> dict[str, Any]:
    """Return every finding, and whether there is no error among them."""
    from edgevit.export.lint.findings import has_errors

    return {
        "target": str(target),
        "passed": not has_errors(findings),
        "findings": [finding.to_json() for finding in findings],
    }


def _node_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the number of nodes and the names of the first ones."""
    count = [f"{len(findings)} nodes:"] if len(findings) > 1 else []
    more = ["..."] if len(findings) > MAX_NODES else []
    return [*count, *(_node_name(finding) for finding in findings[:MAX_NODES]), *more]


def _node_name(finding: Finding) -> str:
    """Return the name of a node, followed by its module unless the name starts with it."""
    if not finding.node:
        return "the whole graph"
    is_included = not finding.module or finding.node.startswith(f"{finding.module}/")
    return finding.node if is_included else f"{finding.node} ({finding.module})"


COMMAND = Command(
    name="lint",
    help="find nodes that a target runtime does not support or runs slowly",
    add_arguments=add_arguments,
    run=run,
)
