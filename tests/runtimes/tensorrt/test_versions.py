"""Supported TensorRT versions."""

from __future__ import annotations

import pytest

from edgevit.errors import MissingError
from edgevit.runtimes.tensorrt.versions import supported_line


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("8.6.1", "8.6"),
        ("8.6.2.3", "8.6"),
        ("10.0.1", "10"),
        ("10.3.0.30", "10"),
        ("10.16.1.11", "10"),
        ("11.4.0", "11"),
    ],
)
def test_a_supported_version_has_a_line(version: str, line: str) -> None:
    assert supported_line(version) == line


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5.2.2", "JetPack 5, with Python 3.8"),
        ("8.2.1", "install JetPack 6"),
        ("8.7.0", "not 8.7.0"),
        ("9.3.0", "not 9.3.0"),
        ("12.0.0", "upgrade edgevit"),
        ("unknown", "older system"),
    ],
)
def test_an_unsupported_version_is_an_error_with_the_version_to_install(version: str, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        supported_line(version)
