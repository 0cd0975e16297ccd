"""The tables of the README that follow from the registries: `python -m tests.tools.readme` writes them anew."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from edgevit.models import registry
from edgevit.runtimes.base import Runtime
from edgevit.runtimes.registry import ALIASES, FORMATS, get_runtime

README = Path(__file__).parents[2] / "README.md"


def support_matrix() -> str:
    """The formats, from the runtimes' own words."""
    lines = ["| `--fmt` | also | runtime | precisions | extra |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_format_row(get_runtime(fmt)) for fmt in FORMATS)])


def models() -> str:
    """The registered models by family."""
    lines = ["| family | names |", "|---|---|"]
    specs = sorted((registry.get_spec(name) for name in registry.list_models()), key=lambda spec: spec.family)
    for family, members in groupby(specs, key=lambda spec: spec.family):
        lines.append(f"| {family} | {', '.join(f'`{spec.name}`' for spec in members)} |")
    return "\n".join(lines)


def _format_row(runtime: Runtime) -> str:
    aliases = ", ".join(f"`{alias}`" for alias, fmt in ALIASES.items() if fmt == runtime.fmt)
    precisions = ", ".join(runtime.precisions)
    return f"| `{runtime.fmt}` | {aliases} | {runtime.title} | {precisions} | `edgevit[{runtime.extra}]` |"


TABLES = {"support": support_matrix, "models": models}


def updated(text: str) -> str:
    """The README's text with every table as it should be."""
    for name, table in TABLES.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, table=table: f"{found[1]}{table()}\n{found[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"the README has no one place for the table {name!r}"
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8")), "utf-8")
