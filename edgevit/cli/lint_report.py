"""What a lint found, as a table for people and as JSON for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgevit.export.lint.findings import LEVELS, Finding, has_errors
from edgevit.export.lint.targets import LintTarget

SHOWN = 3  # nodes of one kind of finding that a table names
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def lint_parts(findings: Sequence[Finding], target: LintTarget) -> list[RenderableType]:
    """A table with one row for each kind of finding, and the verdict."""
    return [*([lint_table(findings, target)] if findings else []), Text(lint_verdict(findings, target))]


def lint_table(findings: Iterable[Finding], target: LintTarget) -> Table:
    """One row for each kind of finding: how bad, where, why, and what to do."""
    table = Table(title=f"What {target} will trip over", title_justify="left", show_lines=True)
    for column, ratio in (("finding", None), ("where", 2), ("why, and what to do", 3)):
        table.add_column(column, overflow="fold", ratio=ratio)
    kinds: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.rule, finding.why, finding.remedy), []).append(finding)
    for (level, rule, why, remedy), alike in kinds.items():
        table.add_row(
            Text.assemble((level, _STYLES[level]), f"\n{rule}"),
            Text("\n".join(_places(alike))),
            Text(f"{why}\n-> {remedy}"),
        )
    return table


def lint_verdict(findings: Iterable[Finding], target: LintTarget) -> str:
    """One line: how many of each level, or that there is nothing."""
    counts = Counter(finding.level for finding in findings)
    if not counts:
        return f"nothing found that {target} would trip over"
    return f"{target}: " + ", ".join(_count(counts[level], level) for level in LEVELS if counts[level])


def lint_json(findings: Sequence[Finding], target: LintTarget) -> dict[str, Any]:
    """Every finding, and whether the lint passed."""
    return {
        "target": str(target),
        "passed": not has_errors(findings),
        "findings": [finding.to_json() for finding in findings],
    }


def _places(findings: Sequence[Finding]) -> list[str]:
    """How many nodes, and the first of them."""
    places = [_place(finding) for finding in findings[:SHOWN]]
    number = [f"{len(findings)} nodes:"] if len(findings) > 1 else []
    return number + places + (["..."] if len(findings) > SHOWN else [])


def _place(finding: Finding) -> str:
    """A node, with its module where the name does not begin with it."""
    if not finding.node:
        return "the whole graph"
    told = not finding.module or finding.node.startswith(f"{finding.module}/")
    return finding.node if told else f"{finding.node} ({finding.module})"


def _count(number: int, level: str) -> str:
    return f"{number} {level}" + ("s" if number > 1 else "")
