"""The JSON report follows its documented schema, and its samples are all there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgevit.latency.document.json_file import VERSION
from edgevit.latency.document.write import write_report
from tests.helpers import documents
from tests.helpers.json_schema import violations

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "report.json"
    write_report(documents.document(), path)
    return path


def test_the_file_follows_the_schema(path: Path) -> None:
    schema, content = json.loads((DOCS / "report_schema.json").read_text()), json.loads(path.read_text())
    assert violations(content, schema) == []
    assert schema["properties"]["version"]["const"] == VERSION
    engine = content["sessions"][0]["engines"][0]
    engine["figures"]["p50_ms"] = "6"
    del engine["evidence"]["samples_ms"]["count"]
    assert violations(content, schema) == [
        "$.sessions[0].engines[0].figures.p50_ms: str is not number",
        "$.sessions[0].engines[0].evidence.samples_ms.count is missing",
    ]


def test_the_documented_lines_read_the_samples(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (DOCS / "report_schema.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 4
    monkeypatch.chdir(path.parent)
    found: dict[str, object] = {}
    exec(lines, found)
    assert tuple(found["times_ms"]) == documents.report().samples_ms  # type: ignore[arg-type]
