"""The formats as tests use them."""

from __future__ import annotations

from collections.abc import Mapping

from edgevit.formats import Int8Scheme, list_formats

# Formats whose engines run without a GPU.
ON_CPU: tuple[str, ...] = tuple(entry.name for entry in list_formats() if not entry.runs_on_device)
INT8_SCHEMES: Mapping[str, Int8Scheme] = {entry.name: entry.int8 for entry in list_formats() if entry.int8 is not None}
