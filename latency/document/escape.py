"""Escape text for HTML and SVG."""

from __future__ import annotations

import html


def printable(text: str, *, instead: str = " ") -> str:
    """Return text in one line, with `instead` in place of each control character."""
    return "".join(each if each.isprintable() else instead for each in text)


def escaped(text: str) -> str:
    """Return text for an element or an attribute in quotes; control characters, which HTML forbids, are replaced."""
    return html.escape(printable(text, instead="\N{REPLACEMENT CHARACTER}"))
