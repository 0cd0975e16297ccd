"""A sample of a dataset's images."""

from __future__ import annotations

from edgevit.errors import UsageError


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most `limit` of `count` places, evenly spread. Raises UsageError for a limit below 1."""
    if limit is not None and limit < 1:
        raise UsageError(f"the number of images must be at least 1, not {limit}")
    kept = count if limit is None else min(limit, count)
    return [place * count // kept for place in range(kept)]


def described(description: str, kept: int, total: int) -> str:
    """Add to the description of a dataset how many of its images are used."""
    return description if kept == total else f"{description}; {kept} of {total} images"
