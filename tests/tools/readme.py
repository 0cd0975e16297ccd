"""Write the tables of README that follow from the registries and the exit statuses: `python -m tests.tools.readme`."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from edgevit.errors import EXIT_STATUSES
from edgevit.formats import Format, list_formats
from edgevit.models import registry

README = Path(__file__).parents[2] / "README.md"


def support_matrix() -> str:
    """Return the table of formats."""
    lines = ["| `--fmt` | also | runtime | precisions | extra |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_format_row, list_formats())])


def models() -> str:
    """Return the table of registered models by family."""
    lines = ["| family | names |", "|---|---|"]
    specs = sorted((registry.get_spec(name) for name in registry.list_models()), key=lambda spec: spec.family)
    for family, members in groupby(specs, key=lambda spec: spec.family):
        lines.append(f"| {family} | {', '.join(f'`{spec.name}`' for spec in members)} |")
    return "\n".join(lines)


def exit_statuses() -> str:
    """Return the table of exit statuses."""
    statuses = sorted({**EXIT_STATUSES, 130: "interrupted (Ctrl-C)"}.items())
    rows = [f"| {status} | {meaning} |" for status, meaning in statuses]
    return "\n".join(["| status | meaning |", "|---|---|", *rows, "| 128 + N | ended by signal N |"])


def _format_row(entry: Format) -> str:
    aliases = ", ".join(f"`{alias}`" for alias in entry.aliases)
    return f"| `{entry.name}` | {aliases} | {entry.title} | {', '.join(entry.precisions)} | `edgevit[{entry.extra}]` |"


TABLES = {"support": support_matrix, "models": models, "statuses": exit_statuses}


def updated(text: str) -> str:
    """Return the text with every table brought up to date."""
    for name, table in TABLES.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, table=table: f"{found[1]}{table()}\n{found[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"README must contain the markers of table {name!r} exactly once"
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8")), "utf-8")
