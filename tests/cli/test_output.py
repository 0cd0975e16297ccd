"""What commands print: a result line first, and tables that fit 80 columns."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console as RichConsole

from edgevit.cli import console as output
from edgevit.cli import progress
from edgevit.cli.console import Console, Part
from edgevit.cli.evaluate import accuracy_parts
from edgevit.cli.export import report_parts, result_lines
from edgevit.cli.latency import latency_parts
from edgevit.cli.latency import result_lines as latency_lines
from edgevit.cli.tables import notes_by_name, short_names, speed_phrase
from edgevit.latency.measure import MeasureProgress
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio
from edgevit.metrics import AccuracyReport, Evaluation
from edgevit.pipeline.report import BundleReport, ExportReport
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Interval, Reference
from tests.helpers import samples

WIDTHS = [80, 100, 140]
CPU = ("torch", "openvino", "ort")


def latencies(*, busy: bool = False) -> tuple[LatencyReport, ...]:
    """Three engines, of which the second takes 0.7 and the third 0.77 of the time of the first."""
    after = samples.BUSY_AFTER if busy else samples.AFTER
    times = dict(zip(CPU, (70.0, 49.0, 53.9), strict=True))
    return tuple(samples.report([[time, 1.01 * time]] * 40, name=name, after=after) for name, time in times.items())


def parity(stage: str, error: float) -> ParityReport:
    """Compare outputs that are off by `error` of the standard deviation."""
    outputs = np.random.default_rng(0).standard_normal((2, 10))
    off = error * outputs.std() * np.where(np.arange(10) % 2, 1, -1)
    reference = Reference(kind="photos", inputs={"x": outputs}, outputs={"y": outputs})
    return compare(stage, lambda feeds: {"y": feeds["x"] + off}, [reference], precision="fp32", batches=(2,))


def bundle(fmt: str, title: str, size_bytes: int | None = 114_400_000) -> BundleReport:
    return BundleReport(
        path=Path(f"bundles/shiftvit_t-fp32-{fmt}"), fmt=fmt, title=title, requested_precision="fp32",
        actual_precision=ExecutedPrecision({"fp32": 81}, {"fp32": 4_500_000_000}), nodes=669, opset=20,
        size_bytes=size_bytes, missing=None, notes=("onnxsim left out: nothing to simplify",),
    )  # fmt: skip


def export_report(*, measured: bool = True, verified: bool = True, busy: bool = False) -> ExportReport:
    results = parity("ONNX", 3e-6) + parity("openvino: engine", 3.8e-6) + parity("ort: engine", 4.1e-6)
    return ExportReport(
        model="shiftvit_t",
        weights="random",
        weights_summary=None,
        stages=(),
        captured_nodes=700,
        bundles=(bundle("openvino", "OpenVINO"), bundle("ort", "ONNX Runtime")),
        parity=results if verified else ParityReport(()),
        latencies=latencies(busy=busy) if measured else (),
        classifies=True,
    )


def accuracy_report() -> AccuracyReport:
    names = ("torch", "shiftvit_cifar10-fp32-openvino", "shiftvit_cifar10-int8-openvino")
    labels = tuple(index % 10 for index in range(2000))
    evaluations = tuple(
        Evaluation(
            name=name,
            precision="fp32",
            class_count=10,
            labels=labels,
            predictions=tuple(label if index % 4 > wrong else 9 - label for index, label in enumerate(labels)),
            ranks=tuple(0 if index % 4 > wrong else 3 for index in range(2000)),
        )
        for wrong, name in enumerate(names)
    )
    return AccuracyReport(paths=(), description="labels from subfolders", evaluations=evaluations)


def printed(*parts: Part, width: int = 80) -> list[str]:
    file = io.StringIO()
    output._print(RichConsole(file=file, width=width, markup=False, emoji=False), *parts)
    return file.getvalue().splitlines()


def test_the_first_line_of_an_export_is_its_result() -> None:
    assert result_lines(export_report()) == [
        "shiftvit_t: OpenVINO 1.43x faster than PyTorch, parity passed (max error 4e-06 std), 114 MB",
        "shiftvit_t: ONNX Runtime 1.30x faster than PyTorch, parity passed (max error 4e-06 std), 114 MB",
    ]
    assert result_lines(export_report(measured=False, verified=False))[1] == (
        "shiftvit_t: ONNX Runtime, parity not checked, 114 MB"
    )


def test_an_engine_that_did_not_run_is_not_called_verified() -> None:
    built = replace(bundle("trt-rtx", "TensorRT-RTX"), missing="no GPU")
    report = replace(export_report(measured=False), bundles=(built, bundle("trt", "TensorRT", size_bytes=None)))
    assert result_lines(report) == [
        "shiftvit_t: TensorRT-RTX engine built but not run here, graph parity not checked, 114 MB",
        "shiftvit_t: TensorRT bundle without its engine, which has to be built on the device",
    ]


TABLES: dict[str, list[Part]] = {
    "export": report_parts(export_report()),
    "export, parts left out": report_parts(export_report(measured=False, verified=False)),
    "latency": latency_parts(latencies()),
    "eval": accuracy_parts(accuracy_report()),
}


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


def test_a_difference_that_is_not_shown_is_no_verdict() -> None:
    ratio = Ratio(1.02, Interval(0.95, 1.1), 40, "")
    assert speed_phrase(ratio, "PyTorch") == "no verdict on the speed against PyTorch (time ratio 1.02 (0.95 to 1.10))"


def test_details_add_tables() -> None:
    short, long = (printed(*report_parts(export_report(), detailed=flag), width=200) for flag in (False, True))
    assert not any("opset" in line for line in short)
    assert any("opset" in line for line in long) and any("cosine" in line for line in long)
    assert any("p99 ms" in line for line in long)


def test_latency_lines_compare_with_the_first_engine() -> None:
    assert latency_lines(latencies())[1] == "ort: 1.30x faster than torch"
    assert latency_lines(latencies()[:1]) == ["torch: p50 70.35 ms, 14.2 images/s, batch 1"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["vit-fp32-ort", "vit-fp32-openvino"], ["ort", "openvino"]),
        (["vit-fp32-ort", "vit-int8-ort"], ["fp32-ort", "int8-ort"]),
        (["vit-fp32-trt", "vit-fp32-trt-rtx"], ["trt", "trt-rtx"]),
        (["vit-fp32-ort", "torch"], ["ort", "torch"]),
        (["vit-fp32-ort"], ["ort"]),
        (["vit-fp32-ort", "ort"], ["vit-fp32-ort", "ort"]),
    ],
)
def test_names_lose_the_parts_that_all_of_them_share(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


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


if __name__ == "__main__":  # look at it: python -m tests.cli.test_output WIDTH
    import sys

    for name, parts in TABLES.items():
        sys.stdout.writelines(f"{line}\n" for line in ["---" + name, *printed(*parts, width=int(sys.argv[1]))])
