"""Engines of a session have short titles that are unique."""

from __future__ import annotations

import dataclasses

from edgevit.latency.document.content import session_of
from tests.helpers.documents import NAMES, product, report


def titles(*others: str) -> list[str]:
    """The titles of both bundles of a run with other candidates."""
    reports = [report(name) for name in NAMES]
    reports += [dataclasses.replace(report(), name=name, details={}) for name in others]
    return [entry.title for entry in session_of(reports, {NAMES[0]: product()}).entries]


def test_bundles_have_short_titles_whatever_they_are_compared_with() -> None:
    assert titles("torch (CPU)", "naive-onnx") == ["fp32-ort", "int8-ort", "torch (CPU)", "naive-onnx"]
    assert titles("int8-ort") == [*NAMES, "int8-ort"]
