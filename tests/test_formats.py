"""Formats: lookup by name and alias."""

from __future__ import annotations

import pytest

from edgevit.errors import UsageError
from edgevit.formats import get_format


def test_formats_and_aliases() -> None:
    assert get_format("ov").name == "openvino"
    assert get_format("onnxruntime").name == "ort"
    with pytest.raises(UsageError, match="Did you mean 'openvino'"):
        get_format("openvno")
