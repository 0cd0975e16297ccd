"""Words of messages and tables."""

from __future__ import annotations


def counted(count: float, noun: str) -> str:
    """Return a number with its noun, in the plural by an "s": "1 image", "40 images", "1.5 cores"."""
    number = f"{count:g}" if isinstance(count, float) else count
    return f"{number} {noun}{'' if count == 1 else 's'}"
