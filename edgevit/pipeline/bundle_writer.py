"""The bundles as they are handed over: references, samples, manifest, and the report of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

import edgevit
from edgevit.bundles import bundle as bundles
from edgevit.bundles import store
from edgevit.export.capture import CAPTURE_OPSET
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.sensitivity import QuantizationPlan
from edgevit.latency.environment import Environment
from edgevit.latency.measure import LatencyReport
from edgevit.models.loading import LoadedModel
from edgevit.pipeline.comparison import PrecisionComparison
from edgevit.pipeline.config import ExportConfig, StageTimer
from edgevit.pipeline.export_run import BuiltBundle, writing
from edgevit.pipeline.references import ReferenceData
from edgevit.pipeline.report import BundleReport, ExportReport, StageTime, latency_figures
from edgevit.runtimes.build import spec_entries
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.tensorrt.trtexec import DeviceSteps
from edgevit.types import TensorSpec


def publish(
    evidence: ReferenceData,
    recipe: ExportConfig,
    captured: OnnxGraph,
    judged: ParityReport,
    made: Sequence[BuiltBundle],
    latencies: Mapping[str, LatencyReport],
    verdicts: Mapping[str, PrecisionComparison],
    clock: StageTimer,
) -> ExportReport:
    subject = evidence.subject
    environment = Environment.capture()
    for item in made:
        with writing(item.folder):
            store.write_references(item.folder / bundles.REFERENCE, evidence.references)
            if subject.classes:
                (item.folder / bundles.CLASSES).write_text("\n".join(subject.classes) + "\n", "utf-8")
            if latencies:
                _write_latency(item, latencies)
            verdict = verdicts.get(item.runtime.fmt)
            manifest = _manifest(subject, recipe, item, judged, latencies, verdict, environment, clock.times)
            store.write_manifest(item.folder, manifest)
    reports = [_bundle_report(item, recipe, verdicts.get(item.runtime.fmt)) for item in made]
    store.publish({item.folder: recipe.out / item.folder.name for item in made})
    return ExportReport(
        model=subject.name,
        weights=str(subject.origin["weights"]),
        stages=tuple(clock.times),
        captured_nodes=captured.node_count,
        bundles=tuple(reports),
        parity=sum((item.parity for item in made), judged),
        latencies=tuple(latencies.values()),
        classifies=subject.preprocessing is not None and _has_classes(captured.outputs[0]),
    )


def _has_classes(output: TensorSpec) -> bool:
    return len(output.shape) == 2 and output.shape[1] != 1


def _bundle_report(item: BuiltBundle, recipe: ExportConfig, verdict: PrecisionComparison | None) -> BundleReport:
    artifact = item.built.artifact
    notes = [f"{record.name} {record.note}" for record in item.graph.history if record.note]
    if isinstance(item.typing, QuantizationPlan):
        notes.append(f"{item.runtime.fmt}: {item.typing.summary}")
        notes += [f"{item.runtime.fmt}: {node.name} stays in float: {node.reason}" for node in item.typing.reverted]
    missing = item.built.missing
    if item.steps is not None and missing is not None:
        tool = "with TensorRT's own tool (on a Jetson: /usr/src/tensorrt/bin/trtexec)"
        notes.append(f"or, in the bundle's folder, {tool}: {item.steps.trtexec}")
        here = missing.partition("; install it: pip")[0]  # not the device: the package alone would build nothing
        missing = f"{item.steps.sentence} ({here})"
    return BundleReport(
        path=recipe.out / item.folder.name,
        fmt=item.runtime.fmt,
        title=item.runtime.title,
        precision_asked=recipe.options.precision,
        precision_found=item.built.precision,
        nodes=item.graph.node_count,
        opset=item.graph.opset,
        size_bytes=artifact.size_bytes if artifact else None,
        missing=missing,
        notes=(*notes, *(artifact.notes if artifact else ())),
        verdict=verdict,
    )


def _device_notes(steps: DeviceSteps | None) -> tuple[str, ...]:
    return () if steps is None else (steps.build, steps.trtexec)


def _manifest(
    subject: LoadedModel,
    recipe: ExportConfig,
    item: BuiltBundle,
    judged: ParityReport,
    latencies: Mapping[str, LatencyReport],
    verdict: PrecisionComparison | None,
    environment: Environment,
    times: Sequence[StageTime],
) -> dict[str, Any]:
    return {
        "edgevit_version": edgevit.__version__,
        "model": {
            "name": subject.name,
            **subject.origin,
            "preprocessing": subject.preprocessing.to_json() if subject.preprocessing else None,
        },
        "exporter": {
            "name": "torch.onnx.export(dynamo=True)",
            "torch": torch.__version__,
            "onnx": metadata.version("onnx"),
            "onnx_ir": metadata.version("onnx-ir"),
            "onnxsim": metadata.version("onnxsim"),
            "capture_opset": CAPTURE_OPSET,
            "opset": item.graph.opset,
            "passes": [
                {
                    "name": r.name,
                    "nodes_before": r.nodes_before,
                    "nodes_after": r.nodes_after,
                    "elapsed_s": r.elapsed_s,
                    "note": r.note,
                }
                for r in item.graph.history
            ],
            "stages": [{"name": stage.name, "elapsed_s": stage.elapsed_s} for stage in times],
        },
        **item.built.entries(item.folder, recipe.options_for(item.runtime), notes=_device_notes(item.steps)),
        **spec_entries({"inputs": item.graph.inputs, "outputs": item.graph.outputs}),
        "typing": item.typing.to_json() if item.typing else None,
        "parity": (judged + item.parity).to_json() if recipe.verify else None,
        "latency": [latency_figures(report) for report in latencies.values()] or None,
        "verdict": verdict.to_json() if verdict is not None else None,
        "environment": environment.to_json(),
    }


def _write_latency(item: BuiltBundle, latencies: Mapping[str, LatencyReport]) -> None:
    """Every sample of the run, of all contestants, beside the manifest's figures."""
    content = [report.to_json() for report in latencies.values()]
    (item.folder / bundles.LATENCY).write_text(json.dumps(content, allow_nan=False) + "\n", "utf-8")
