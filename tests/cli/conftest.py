"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that returns stderr, which must be one line."""

    def read() -> str:
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("edgevit: ")
        return lines[0]

    return read
