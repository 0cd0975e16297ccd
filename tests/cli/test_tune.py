"""`edgevit tune`: its tables, from engines and races that are known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from rich.table import Table

from edgevit.bundles.labeled import DenseEvaluation
from edgevit.cli.tune import engine_table, race_table, report_parts
from edgevit.dense.bootstrap import Estimate
from edgevit.pipeline.tuning.racing import Race, Standing
from edgevit.pipeline.tuning.report import Row
from edgevit.types import Interval
from tests.helpers.tuning_reports import tuned
from tests.helpers.tuning_rows import row, verified


def header(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def cells(table: Table, title: str) -> list[str]:
    """Return the cells of the column with a title."""
    (column,) = (each for each in table.columns if each.header == title)
    return [str(cell) for cell in column.cells]


def detector(name: str, time_ms: float, *, mean_precision: float) -> Row:
    """Return an engine of a detector whose mAP was measured."""
    figures = {"mAP": Estimate(mean_precision, np.array([mean_precision]))}
    evaluation = DenseEvaluation(name=name, images=40, figures=figures, details={}, chance=0.01)
    return row(name, time_ms, found=replace(verified(1e-6), evaluation=evaluation))


def under_load(found: Row) -> Row:
    """Return the engine with two inferences in flight."""
    return replace(found, configuration=replace(found.configuration, streams=2))


@pytest.mark.parametrize(
    ("rows", "title", "accuracies"),
    [
        ([row("ort", 10.0, found=verified(1e-6, correct=90))], "top-1 %", ["90.0"]),
        ([detector("ort", 10.0, mean_precision=0.412)], "mAP %", ["41.2"]),
        ([row("ort", 10.0, found=verified(0.05))], "SNR dB", ["26"]),
    ],
    ids=["classifier", "detector", "without --eval"],
)
def test_the_accuracy_has_the_name_of_its_measure(rows: Sequence[Row], title: str, accuracies: list[str]) -> None:
    table = engine_table(tuned(rows))
    assert header(table) == ["engine", "settings", "p50 ms", "time / fp32-ort", title, "MB", "RAM"]
    assert cells(table, title) == accuracies


def test_the_measure_is_that_of_the_engines_that_were_checked() -> None:
    """The first may have failed before its accuracy was measured, and the last not be checked for lack of time."""
    failed = row("ort", 10.0, found=verified(5.0, failure="parity failed"))
    unchecked = replace(row("onnx", 20.0), verification=None)
    table = engine_table(tuned([failed, detector("openvino", 12.0, mean_precision=0.5), unchecked]))
    assert cells(table, "mAP %") == ["refused", "50.0", "-"]


def test_the_front_is_starred_and_times_are_compared_with_the_reference() -> None:
    table = engine_table(tuned([row("ort", 10.0), row("openvino", 5.0)]))
    assert cells(table, "engine") == ["  fp32-ort", "* fp32-openvino"]
    assert cells(table, "p50 ms")[1] == "4.99"
    reference, other = cells(table, "time / fp32-ort")
    assert reference == "" and other.startswith("0.50 (0.")


def test_the_legend_names_the_units_of_size_and_memory() -> None:
    report = tuned([row("ort", 10.0)])
    found = engine_table(report)
    assert cells(found, "MB") == [f"{report.rows[0].size_bytes / 1e6:.1f}"]
    (legend,) = (part for part in report_parts(report) if isinstance(part, str) and part.startswith("*"))
    assert legend.endswith("size (MB of 10^6) and peak RAM (MB of 2^20)")


def test_under_load_images_per_second_take_the_place_of_the_latency() -> None:
    table = engine_table(tuned([under_load(row("ort", 10.0))]))
    assert "p50 ms" not in header(table)
    (rate,) = cells(table, "images/s")
    assert float(rate) == pytest.approx(100, rel=0.02)
    assert cells(table, "settings") == ["1 thread, 2 streams"]


@pytest.mark.parametrize(
    ("reference", "title", "times"),
    [(row("ort", 10.0), "p50 ms", ["4.00", "8.00"]), (under_load(row("ort", 10.0)), "ms / image", ["1.00", "2.00"])],
    ids=["latency", "under load"],
)
def test_the_races_show_who_left(reference: Row, title: str, times: list[str]) -> None:
    first = Standing(name="a", p50_ms=4.0, images=4, ratio=1.0, interval=None, runs=48, dropped=False)
    slow = Standing(name="b", p50_ms=8.0, images=4, ratio=2.0, interval=Interval(1.9, 2.1), runs=10, dropped=True)
    table = race_table(tuned([reference], races=(("variants", Race((first, slow))),)))
    assert header(table) == ["race", "candidate", title, "time / fastest", "runs", ""]
    assert cells(table, "candidate") == ["a", "b"]
    assert cells(table, title) == times
    assert cells(table, "time / fastest") == ["1.00", "2.00 (1.90 to 2.10)"]
    assert cells(table, "") == ["", "slower"]


def test_the_legend_names_the_memory_only_if_it_was_measured_of_all() -> None:
    """A short search has "-" in the column RAM."""
    measured, unmeasured = row("ort", 10.0), row("openvino", 9.0)
    unmeasured = replace(unmeasured, latency=replace(unmeasured.latency, peak_memory_mb=None))
    assert "peak RAM" in legend([measured])
    for rows in ([unmeasured], [measured, unmeasured]):
        assert legend(rows) == "* Pareto-optimal in time, accuracy and size (MB of 10^6)"


def test_the_result_is_found_for_the_same_weights() -> None:
    """A factory that draws other weights each time was told that --fmt auto uses the result from now on."""
    notes = [part for part in report_parts(tuned([row("ort", 10.0)])) if isinstance(part, str)]
    assert any("export --fmt auto uses" in note and note.endswith("for the same weights") for note in notes)


def legend(rows: Sequence[Row]) -> str:
    (line,) = (part for part in report_parts(tuned(rows)) if isinstance(part, str) and part.startswith("* Pareto"))
    return line
