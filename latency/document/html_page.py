"""Write a document as one HTML file: no script, no font and no picture from elsewhere. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from edgevit.latency.document.blocks import Block, Command, Facts, Figure, Section, Table, Text
from edgevit.latency.document.content import Document
from edgevit.latency.document.escape import escaped
from edgevit.latency.document.sections import sections_of, subtitle_of, title_of
from edgevit.latency.document.style import STYLE
from edgevit.latency.document.verdict import document_verdict

_ANSWERS = ("yes", "no", "unknown")
# The page may use its own style sheet and nothing else, should a reader's browser find more in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_page(document: Document) -> str:
    """Return the page."""
    title = escaped(title_of(document))
    body = "\n".join(_body(document))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _body(document: Document) -> Iterator[str]:
    yield f"<h1>{escaped(title_of(document))}</h1>"
    answer, words = document_verdict(document)
    yield f'<p class="soft">{escaped(subtitle_of(document))}</p>'
    yield f'<p class="status {answer}">{escaped(_capital(words))}</p>'
    for section in sections_of(document):
        yield from _section(section)
    yield f'<footer><p class="soft">edgevit {escaped(document.edgevit_version)}</p></footer>'


def _section(section: Section) -> Iterator[str]:
    yield f"<h{section.level}>{escaped(section.title)}</h{section.level}>"
    for pictures, blocks in groupby(section.blocks, key=lambda block: isinstance(block, Figure)):
        shown = [_block(block, section.level + 1) for block in blocks]
        yield f'<div class="figures">{"".join(shown)}</div>' if pictures else "\n".join(shown)


def _block(block: Block, level: int) -> str:
    match block:
        case Text():
            return (
                f"<p>{escaped(block.text)}</p>"
                if not block.is_warning
                else f'<p class="status no">{escaped(block.text)}</p>'
            )
        case Table():
            return _table(block, block.header[0])
        case Facts():
            rows = "".join(
                f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in block.rows
            )
            return f"<dl>{rows}</dl>"
        case Figure():
            table = f"<details><summary>Figures of this picture</summary>{_table(block.table, block.title)}</details>"
            note = f"<figcaption>{escaped(block.note)}</figcaption>" if block.note else ""
            return f"<figure><h{level}>{escaped(block.title)}</h{level}>{block.svg}{note}{table}</figure>"
        case Command():
            return f"<p>{escaped(block.note)}</p><pre><code>{escaped(block.line)}</code></pre>"


def _table(table: Table, name: str) -> str:
    """Return a table that scrolls by itself, also by keyboard, where the page is too narrow for it."""
    head = "".join(
        f'<th{_side(index, table)} scope="col">{escaped(cell)}</th>' for index, cell in enumerate(table.header)
    )
    rows = "".join(f"<tr>{''.join(_cells(row, table))}</tr>" for row in table.rows)
    return (
        f'<div class="scroll" role="region" aria-label="{escaped(name)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cells(row: Sequence[str], table: Table) -> Iterator[str]:
    for index, cell in enumerate(row):
        shown = f'<b class="{cell}">{cell}</b>' if cell in _ANSWERS else escaped(cell)
        yield f"<td{_side(index, table)}>{shown}</td>"


def _side(index: int, table: Table) -> str:
    return ' class="left"' if index < table.left else ' class="nowrap"'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
