"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from edgevit.words import counted


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 cores"), (1, "1 core"), (1.0, "1 core"), (1.5, "1.5 cores"), (1_500_000, "1500000 cores")],
)
def test_all_but_one_are_in_the_plural(count: float, expected: str) -> None:
    assert counted(count, "core") == expected
