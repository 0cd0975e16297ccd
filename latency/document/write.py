"""Write a document in the form that the file's suffix names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from edgevit.errors import UsageError
from edgevit.files import is_replaceable, os_reason, write_atomically
from edgevit.latency.document.content import Document
from edgevit.latency.document.csv_file import csv_file
from edgevit.latency.document.html_page import html_page
from edgevit.latency.document.json_file import document_json
from edgevit.latency.document.markdown import markdown_page


def _json_text(document: Document) -> str:
    return json.dumps(document_json(document), indent=1, allow_nan=False) + "\n"


_WRITERS: dict[str, Callable[[Document], str]] = {
    ".html": html_page,
    ".md": markdown_page,
    ".csv": csv_file,
    ".json": _json_text,
}


def require_report_paths(paths: Sequence[Path]) -> None:
    """Raise UsageError for a suffix that names no form, or a folder that cannot be written: before the long work."""
    for path in paths:
        if path.suffix.lower() not in _WRITERS:
            raise UsageError(f"unknown kind of report: {path}; its name must end in {', '.join(_WRITERS)}")
        if not is_replaceable(path):
            raise UsageError(f"cannot write {path}: not a file in a writable folder; choose another path")


def write_report(document: Document, path: Path) -> None:
    """Write the document; an older file at `path` is replaced only by a complete one. Raises UsageError."""
    try:
        write_atomically(path, _WRITERS[path.suffix.lower()](document))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {os_reason(error)}; choose another path") from error
