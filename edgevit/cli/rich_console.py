"""rich's console without the control characters of what is printed: names in a file could steer the terminal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from edgevit.files import escape_control_characters

# Ends of lines, and the bytes of file names that are not valid in their encoding, as Python keeps them.
_KEPT = frozenset("\n\t") | frozenset(map(chr, range(0xDC80, 0xDD00)))


class EscapingConsole(Console):
    """A console that prints control characters as escapes: `\\x1b`. Its own colors are no text and stay."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string before it is measured, so that the cells of a table have room for it."""
        return super().render_str(_escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape everything else."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _escaped(text), style, control)

    def on_broken_pipe(self) -> NoReturn:
        """Leave a closed pipe to `main`; rich would end the process with status 1, which is that of lint errors."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _escaped(text: str) -> str:
    return escape_control_characters(text, keep=_KEPT)
