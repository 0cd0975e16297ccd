"""Write docs/cli.md from the command line's parser: `python -m tests.tools.cli_reference`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevit.cli.main import command_line
from edgevit.cli.parser import subcommands
from tests.tools.readme import exit_statuses

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

_HEAD = """# Command line

Results are printed on stdout, progress and errors on stderr. `-q` prints the result alone, `-v` all tables and columns.

Completion of commands and options: `source <(edgevit completion bash)` in `~/.bashrc`, or `zsh` in `~/.zshrc`.

This page is generated from `edgevit --help` by `make docs`.
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    parts = [_HEAD, *(_section(name, parser) for name, parser in subcommands(command_line()))]
    return "\n".join([*parts, f"## Exit status\n\n{exit_statuses()}\n"])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    """Return the section of a command: its synopsis, description and arguments."""
    positionals = [action for action in parser._actions if not action.option_strings]
    options = [action for action in parser._actions if action.option_strings]
    required = [_flag(option) for option in options if option.required]
    words = ["edgevit", name, *(_operand(action) for action in positionals), *required, "[OPTION]..."]
    rows = [f"| `{_cell(_operand(action))}` | {_help(action)} |" for action in positionals if action.help]
    rows += [
        f"| `{_cell(_flag(option))}` | {_help(option)} |" for option in options if "--help" not in option.option_strings
    ]
    lines = [f"## edgevit {name}\n", f"{parser.description}\n", "```text", " ".join(words),
             "```\n", "| argument | |", "|---|---|", *rows]  # fmt: skip
    return "\n".join(lines) + "\n"


def _operand(action: argparse.Action) -> str:
    metavar = str(action.metavar or action.dest.upper())
    return f"{metavar}..." if action.nargs == "+" else metavar


def _flag(option: argparse.Action) -> str:
    names = ", ".join(option.option_strings)
    if option.nargs == 0:
        return names
    return f"{names} {option.metavar or '|'.join(map(str, option.choices or ()))}"


def _help(action: argparse.Action) -> str:
    return _cell((action.help or "").replace("%%", "%"))


def _cell(text: str) -> str:
    """Escape the separator of table cells."""
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
