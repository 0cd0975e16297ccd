"""Write a document as Markdown that pastes into a GitHub issue. Names cannot format, link or mention anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgevit.latency.document.blocks import Block, Command, Facts, Figure, Section, Table, Text
from edgevit.latency.document.content import Document
from edgevit.latency.document.escape import printable
from edgevit.latency.document.sections import sections_of, subtitle_of, title_of
from edgevit.latency.document.verdict import document_verdict

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&@])")
_AUTOLINK = re.compile(r"(?i)(https?|ftp|www)([:.])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;", "|": "&#124;"}


def markdown_page(document: Document) -> str:
    """Return the document in Markdown; the figures of pictures are tables."""
    verdict = document_verdict(document)[1]
    lines = [f"# {_text(title_of(document))}", "", _text(subtitle_of(document)), "", f"**{_text(verdict)}**", ""]
    for section in sections_of(document):
        lines += _section(section)
    return "\n".join([*lines, f"edgevit {_text(document.edgevit_version)}", ""])


def _section(section: Section) -> Iterator[str]:
    yield from (f"{'#' * section.level} {_text(section.title)}", "")
    for block in section.blocks:
        yield from (*_block(block), "")


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text():
            yield f"**{_text(block.text)}**" if block.is_warning else _text(block.text)
        case Table():
            yield from _table(block.header, block.rows, left=block.left)
        case Facts():
            yield from _table(("", ""), block.rows, left=2)
        case Figure():
            yield from (f"<details><summary>{_entities(block.title)}</summary>", "")
            yield from _table(block.table.header, block.table.rows, left=block.table.left)
            yield from ("", "</details>")
        case Command():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.line)), default=0))
            yield from (_text(block.note), "", f"{fence}sh", printable(block.line), fence)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    yield _row(header)
    yield f"|{'|'.join(':---' if index < left else '---:' for index in range(len(header)))}|"
    for row in rows:
        yield _row(row)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(text: str) -> str:
    escaped = _SPECIAL.sub(lambda found: _ENTITIES.get(found[1], f"\\{found[1]}"), printable(text))
    return _AUTOLINK.sub(r"\1<!-- -->\2", escaped)


def _entities(text: str) -> str:
    return "".join(_ENTITIES.get(each, each) for each in printable(text))
