"""The table of latencies in docs/dense.md is written from dense_latency.tsv."""

from __future__ import annotations

from dataclasses import replace

from tests.tools import dense_latency
from tests.tools.dense_latency import Row

ROW = Row(
    model="fpn_r50",
    processor="A processor",
    threads=1,
    ort_p50_ms=1234.56,
    openvino_p50_ms=1000.0,
    ratio=0.81,
    ratio_low=0.8,
    ratio_high=0.82,
    max_error_std=2e-6,
    agreement=1.0,
    others_fraction=0.03,
    measured_at="2026-01-02",
)
DETECTOR = replace(ROW, model="e2e_mf_508m", agreement=None, ratio_low=None, ratio_high=None)


def test_the_page_is_up_to_date() -> None:
    text = dense_latency.PAGE.read_text("utf-8")
    assert dense_latency.page(text, dense_latency.load()) == text


def test_a_table_is_read_as_it_was_written() -> None:
    rows = {row.key: row for row in (ROW, DETECTOR, replace(ROW, threads=2))}
    assert dense_latency.read(dense_latency.format_table(rows)) == rows


def test_the_page_has_a_table_for_each_processor_and_number_of_threads() -> None:
    rows = {row.key: row for row in (ROW, DETECTOR, replace(ROW, threads=2, others_fraction=0.5))}
    written = dense_latency.page("before\n<!-- latency -->\nold\n<!-- /latency -->\nafter\n", rows)
    one, two = written.split("**A processor, ")[1:]
    assert "1 thread**, 2026-01-02; others used up to 3%" in one
    assert "2 threads**, 2026-01-02; others used up to 50%" in two
    assert one.index("`e2e_mf_508m` | 1235 | 1000 | 0.81 | 2.0e-06 |  |") < one.index("`fpn_r50`")
    assert "`fpn_r50` | 1235 | 1000 | 0.81 (0.80 to 0.82) | 2.0e-06 | 100.00% |" in one
    assert "old" not in written
    assert written.startswith("before\n")
    assert written.endswith("after\n")
