"""Write a document as CSV: one row for each engine, units in the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from edgevit.latency.document.content import Document, Entry, Session
from edgevit.latency.document.escape import printable
from edgevit.latency.document.verdict import certified, headline
from edgevit.types import Interval

Cell = str | float | int | None

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_file(document: Document) -> str:
    """Return the rows. Unknown figures are empty; text that a spreadsheet would compute starts with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for session in document.sessions:
        for entry in session.entries:
            writer.writerow([_safe(column(session, entry)) for column in _COLUMNS.values()])
    return out.getvalue()


def _safe(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    line = printable(cell)
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line


def _low(interval: Interval | None) -> float | None:
    return None if interval is None else interval.low


def _high(interval: Interval | None) -> float | None:
    return None if interval is None else interval.high


def _percentile(percent: int) -> dict[str, Callable[[Session, Entry], Cell]]:
    def value(_: Session, entry: Entry) -> Cell:
        return entry.report.percentile(percent).value

    def low(_: Session, entry: Entry) -> Cell:
        return _low(entry.report.percentile_interval_ms(percent))

    def high(_: Session, entry: Entry) -> Cell:
        return _high(entry.report.percentile_interval_ms(percent))

    return {f"p{percent} (ms)": value, f"p{percent} low (ms)": low, f"p{percent} high (ms)": high}


_COLUMNS: dict[str, Callable[[Session, Entry], Cell]] = {
    "engine": lambda _, entry: entry.name,
    "model": lambda _, entry: None if entry.product is None else entry.product.model,
    "precision read back": lambda _, entry: entry.precision,
    "device": lambda session, _: session.device,
    "processor": lambda session, _: session.first.environment.cpu,
    "measured at (UTC)": lambda session, _: session.first.measured_at,
    "certified": lambda session, _: certified(session),
    "headline": lambda session, _: headline(session),
    "batch": lambda _, entry: entry.report.batch,
    "threads": lambda _, entry: entry.report.threads,
    "runs": lambda _, entry: entry.report.runs,
    "recorded (s)": lambda _, entry: sum(entry.report.samples_ms) / 1e3,
    "p50 (ms)": lambda _, entry: entry.report.p50_ms,
    "p50 low (ms)": lambda _, entry: _low(entry.report.p50_interval_ms),
    "p50 high (ms)": lambda _, entry: _high(entry.report.p50_interval_ms),
    **_percentile(90),
    **_percentile(99),
    "GPU compute p50 (ms)": lambda _, entry: entry.report.compute_p50_ms,
    "time ratio": lambda _, entry: None if entry.ratio is None else entry.ratio.value,
    "time ratio low": lambda _, entry: None if entry.ratio is None else _low(entry.ratio.interval),
    "time ratio high": lambda _, entry: None if entry.ratio is None else _high(entry.ratio.interval),
    "verdict": lambda _, entry: None if entry.ratio is None else entry.ratio.verdict,
    "throughput (images/s)": lambda _, entry: entry.report.throughput_per_s,
    "load (s)": lambda _, entry: entry.report.load_s,
    "first inference (ms)": lambda _, entry: entry.report.first_inference_ms,
    "host memory (MiB)": lambda _, entry: entry.report.peak_memory_mb,
    "GPU memory (MiB)": lambda _, entry: entry.report.device_memory_mb,
    "engine size (bytes)": lambda _, entry: None if entry.product is None else entry.product.engine_bytes,
    "engine SHA-256": lambda _, entry: entry.report.details.get("engine_sha256"),
    "ONNX SHA-256": lambda _, entry: entry.report.details.get("onnx_sha256"),
}
