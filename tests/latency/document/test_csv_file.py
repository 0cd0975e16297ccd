"""The CSV report has one row for each engine, with units in its header."""

from __future__ import annotations

import csv
import dataclasses
import io

from edgevit.latency.document.content import session_of
from edgevit.latency.document.csv_file import csv_file
from tests.helpers import documents


def test_one_row_an_engine() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_file(documents.document(documents.session(), documents.session())))))
    assert [row["engine"] for row in rows] == [*documents.NAMES] * 2
    first, second = rows[:2]
    report = documents.report()
    assert float(first["p50 (ms)"]) == report.p50_ms and float(first["p90 (ms)"]) == report.p90_ms
    assert float(first["p99 low (ms)"]) <= float(first["p99 (ms)"]) <= float(first["p99 high (ms)"])
    assert (first["time ratio"], first["verdict"], first["GPU memory (MiB)"]) == ("", "", "")  # unknown is empty
    assert float(second["time ratio high"]) < 1 and second["verdict"] == "faster"
    assert first["certified"] == "yes" and first["engine size (bytes)"] == "5000000"


def test_a_name_is_no_formula() -> None:
    hostile = dataclasses.replace(documents.report(), name='=HYPERLINK("x")\n')
    (row,) = csv.DictReader(io.StringIO(csv_file(documents.document(session_of([hostile], {})))))
    assert row["engine"] == '\'=HYPERLINK("x") '
