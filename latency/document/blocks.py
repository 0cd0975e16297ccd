"""Blocks of a document: HTML and Markdown are written from the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `is_warning` sets it off."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. The first `left` columns are left-aligned, the others hold figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values; a value that is absent has no row."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture as SVG, with the table of its figures."""

    title: str
    svg: str
    table: Table
    note: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, ready to paste."""

    line: str
    note: str = ""


Block: TypeAlias = Text | Table | Facts | Figure | Command


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with blocks below it. `level` is that of the heading, from 2."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2
