"""Output of the commands: a result line first, and tables that fit 80 columns."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from edgevit.cli import progress
from edgevit.cli.console import Console
from edgevit.cli.export_output import report_parts, result_lines
from edgevit.cli.latency_output import result_lines as latency_lines
from edgevit.cli.tables import notes_by_name, speed_phrase
from edgevit.latency.progress import MeasureProgress
from edgevit.latency.statistics import Ratio
from edgevit.types import Interval
from tests.helpers.reports import TABLES, bundle_report, export_report, latencies, printed

WIDTHS = [80, 100, 140]


def test_the_first_line_of_an_export_is_its_result() -> None:
    assert result_lines(export_report()) == [
        "shiftvit_t: OpenVINO 1.43x faster than PyTorch (CPU), parity passed (max error 4e-06 std), 114 MB",
        "shiftvit_t: ONNX Runtime 1.30x faster than PyTorch (CPU), parity passed (max error 4e-06 std), 114 MB",
    ]
    assert result_lines(export_report(measured=False, verified=False))[1] == (
        "shiftvit_t: ONNX Runtime, parity not checked, 114 MB"
    )


def test_an_engine_that_did_not_run_is_not_called_verified() -> None:
    built = replace(bundle_report("trt-rtx", "TensorRT-RTX"), missing="no GPU")
    report = replace(export_report(measured=False), bundles=(built, bundle_report("trt", "TensorRT", size_bytes=None)))
    assert result_lines(report) == [
        "shiftvit_t: TensorRT-RTX engine built but not run here, graph parity not checked, 114 MB",
        "shiftvit_t: TensorRT bundle without its engine, which has to be built on the device",
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_without_a_fold(name: str, width: int) -> None:
    tables = [part for part in TABLES[name] if not isinstance(part, str)]
    lines = printed(*tables, width=width)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert [line.rstrip() for line in lines] == [line.rstrip() for line in printed(*tables, width=1000)]
    assert all(len(table.columns) <= 6 for table in tables)


def test_a_note_of_several_engines_is_one_line() -> None:
    lines = [line for line in printed(*report_parts(export_report(busy=True)), width=200) if "other processes" in line]
    assert len(lines) == 1
    assert lines[0].startswith("note: other processes took ")


def test_a_note_of_some_engines_names_them() -> None:
    assert notes_by_name({"torch": ["slow"], "ort": ["slow", "busy"], "trt": ["busy"]}) == [
        "note: torch, ort: slow",
        "note: ort, trt: busy",
    ]
    assert notes_by_name({"torch": ["busy"]}) == ["note: torch: busy"]


def test_a_difference_that_is_not_shown_gives_no_verdict() -> None:
    ratio = Ratio(1.02, Interval(0.95, 1.1), 40, "")
    assert speed_phrase(ratio, "PyTorch") == "no verdict on the speed against PyTorch (time ratio 1.02 (0.95 to 1.10))"


def test_details_add_tables() -> None:
    short, long = (printed(*report_parts(export_report(), detailed=flag), width=200) for flag in (False, True))
    assert [any(line.startswith("percentiles:") for line in lines) for lines in (short, long)] == [False, True]
    assert not any("opset" in line for line in short)
    assert any("opset" in line for line in long) and any("cosine" in line for line in long)
    assert any("p99 ms" in line for line in long)


def test_latency_lines_compare_with_the_first_engine() -> None:
    assert latency_lines(latencies())[1] == "ort: 1.30x faster than torch (CPU)"
    assert latency_lines(latencies()[:1]) == ["torch (CPU): p50 70.35 ms, 14.2 images/s, batch 1"]


def test_no_color_and_a_pipe_print_no_escape_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    Console().result(*TABLES["export"])
    assert "\x1b" not in capsys.readouterr().out


def test_a_measurement_shows_the_time_that_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float | None]] = []
    monkeypatch.setattr(progress, "show_stages", lambda: nullcontext(lambda *stage: shown.append(stage)))
    with Console().measure_progress() as on_measure:
        on_measure(MeasureProgress("warm-up of torch", 0.5, None))
        on_measure(MeasureProgress("measuring", 0.25, 29.6))
    assert shown == [("warm-up of torch, 50%", None), ("measuring, 25%, 30 s left", None)]


def test_quiet_prints_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.result("result")
    console.print("note")
    with console.stage_progress() as on_stage:
        on_stage("capture", 1.0)
    console.finish({}, next_command="edgevit run x")
    assert capsys.readouterr() == ("result\n", "")
