"""Reports of an export, a measurement and an evaluation, and the tables printed of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console as RichConsole

from edgevit.cli import console
from edgevit.cli.console import Part
from edgevit.cli.evaluate import accuracy_parts
from edgevit.cli.export_output import report_parts
from edgevit.cli.latency_output import latency_parts
from edgevit.latency.report import LatencyReport
from edgevit.metrics import AccuracyReport, Evaluation
from edgevit.pipeline.report import BundleReport, ExportReport
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Reference
from tests.helpers import samples

CPU = ("torch (CPU)", "openvino", "ort")


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


def bundle_report(fmt: str, title: str, size_bytes: int | None = 114_400_000) -> BundleReport:
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
        lacks_checkpoint=True,
        reference="PyTorch",
        baseline="torch (CPU)",
        weights_summary=None,
        preprocessing_note=None,
        stages=(),
        captured_nodes=700,
        bundles=(bundle_report("openvino", "OpenVINO"), bundle_report("ort", "ONNX Runtime")),
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
    console._print(RichConsole(file=file, width=width, markup=False, emoji=False), *parts)
    return file.getvalue().splitlines()


TABLES: dict[str, list[Part]] = {
    "export": report_parts(export_report()),
    "export, parts left out": report_parts(export_report(measured=False, verified=False)),
    "latency": latency_parts(latencies()),
    "eval": accuracy_parts(accuracy_report()),
}
