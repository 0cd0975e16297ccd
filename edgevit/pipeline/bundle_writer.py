"""Write the bundles and the export report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import edgevit
from edgevit.bundles import store
from edgevit.bundles.build_records import (
    BuildRecord,
    ExporterRecord,
    PassEntry,
    PrecisionRecord,
    RuntimeRecord,
    StageRecord,
)
from edgevit.bundles.latency_file import write_latency
from edgevit.bundles.manifest import CLASSES_FILE, REFERENCE_FILE, Manifest
from edgevit.bundles.model_record import ModelRecord
from edgevit.export.graph import CAPTURE_OPSET, OnnxGraph
from edgevit.export.macs import graph_work
from edgevit.latency.compare import latency_figures
from edgevit.latency.environment import Environment
from edgevit.latency.report import LatencyReport
from edgevit.metrics import find_logits
from edgevit.models.description import ModelDescription, describe_preprocessing, describe_weights, is_hub_name
from edgevit.pipeline.comparison import PrecisionComparison
from edgevit.pipeline.export_run import BuiltBundle, ExportRun, LatencyOutcome, StageTime
from edgevit.pipeline.report import BundleReport, ExportReport
from edgevit.pipeline.source import Source
from edgevit.runtimes.parity import ParityReport


def write_bundles(
    export: ExportRun,
    bundles: Sequence[BuiltBundle],
    *,
    graph_parity: ParityReport,
    latency: LatencyOutcome,
    comparisons: Mapping[str, PrecisionComparison],
) -> ExportReport:
    """Complete the staged bundles, move them to the output folder and return the report.

    `graph_parity` is the parity of the captured graph, which all bundles share.
    Raises ExportError if a file cannot be written.
    """
    environment = Environment.capture()
    for bundle in bundles:
        _complete(
            export,
            bundle,
            parity=graph_parity + bundle.parity if export.config.verify else None,
            latencies=tuple(latency.reports.values()),
            comparison=comparisons.get(bundle.fmt),
            environment=environment,
        )
    destinations = {bundle.folder: export.config.out / bundle.folder.name for bundle in bundles}
    reports = [_bundle_report(bundle, destinations[bundle.folder], comparisons.get(bundle.fmt)) for bundle in bundles]
    store.publish(destinations)
    model = export.model
    return ExportReport(
        model=model.name,
        weights=model.origin.weights,
        lacks_checkpoint=model.origin.lacks_checkpoint,
        reference=export.source.title,
        baseline=export.source.baseline,
        weights_summary=describe_weights(model.origin),
        preprocessing_note=describe_preprocessing(model),
        stages=tuple(export.timer.times),
        captured_nodes=export.captured.node_count,
        bundles=tuple(reports),
        parity=sum((bundle.parity for bundle in bundles), graph_parity),
        latencies=tuple(latency.reports.values()),
        latency_problems=latency.problems,
        classifies=model.preprocessing is not None and find_logits(export.captured.outputs) is not None,
    )


def _complete(
    export: ExportRun,
    bundle: BuiltBundle,
    *,
    parity: ParityReport | None,
    latencies: Sequence[LatencyReport],
    comparison: PrecisionComparison | None,
    environment: Environment,
) -> None:
    """Write the files that a staged bundle has beside its engine: references, class names, latency and manifest."""
    manifest = Manifest(
        edgevit_version=edgevit.__version__,
        model=_model_record(export.model),
        exporter=_exporter_record(export.source, bundle.graph, export.timer.times),
        build=BuildRecord.of(
            bundle.built, bundle.options, threads=export.config.tuned_threads, notes=_device_notes(bundle)
        ),
        runtime=RuntimeRecord.of(bundle.built, bundle.folder),
        precision=PrecisionRecord(requested=bundle.options.precision, executed=bundle.built.precision),
        inputs=bundle.graph.inputs,
        outputs=bundle.graph.outputs,
        work=graph_work(bundle.graph, batch=bundle.options.batch),
        precision_plan=bundle.precision_plan.to_json() if bundle.precision_plan else None,
        parity=parity.to_json() if parity is not None else None,
        latency=tuple(latency_figures(report) for report in latencies) or None,
        comparison=comparison.to_json() if comparison is not None else None,
        environment=environment.to_json(),
    )
    with store.translate_write_errors(bundle.folder):
        store.write_references(bundle.folder / REFERENCE_FILE, export.references.outputs)
        if export.model.classes:
            (bundle.folder / CLASSES_FILE).write_text("\n".join(export.model.classes) + "\n", "utf-8")
        if latencies:
            write_latency(bundle.folder, latencies)
        store.write_manifest(bundle.folder, manifest)


def _bundle_report(bundle: BuiltBundle, path: Path, comparison: PrecisionComparison | None) -> BundleReport:
    artifact, steps, missing = bundle.built.artifact, bundle.device_steps, bundle.built.missing
    notes = [f"{record.name} {record.note}" for record in bundle.graph.history if record.note]
    if bundle.precision_plan is not None:
        notes += [f"{bundle.fmt}: {note}" for note in bundle.precision_plan.notes()]
    if bundle.options.session.chosen:
        notes.append(f"{bundle.fmt}: opened with {bundle.options.session}")
    if steps is not None and missing is not None:
        notes.append(steps.trtexec_advice)
        missing = steps.explain(missing)
    return BundleReport(
        path=path,
        fmt=bundle.fmt,
        title=bundle.runtime.title,
        requested_precision=bundle.options.precision,
        actual_precision=bundle.built.precision,
        nodes=bundle.graph.node_count,
        opset=bundle.graph.opset,
        size_bytes=artifact.size_bytes if artifact else None,
        missing=missing,
        notes=(*notes, *(artifact.notes if artifact else ())),
        comparison=comparison,
    )


def _model_record(model: ModelDescription) -> ModelRecord:
    origin = model.origin
    return ModelRecord(
        name=model.name,
        source=None if origin.source is None else _without_folder(origin.source),
        weights=_without_folder(origin.weights),
        weights_sha256=origin.weights_sha256,
        weights_key=origin.weights_key,
        weights_tensors=origin.weights_tensors,
        fingerprint=origin.fingerprint,
        family=origin.family,
        options=origin.options,
        num_classes=origin.num_classes,
        task=origin.task,
        output_form=origin.output_form,
        preprocessing=model.preprocessing,
        preprocessing_source=model.preprocessing_source,
    )


def _without_folder(text: str) -> str:
    """Remove the folder from a path: a bundle is passed on, and folders can reveal its author's name."""
    return text if "://" in text or is_hub_name(text) else text.rpartition("/")[2]


def _exporter_record(source: Source, graph: OnnxGraph, stages: Sequence[StageTime]) -> ExporterRecord:
    return ExporterRecord(
        name=source.exporter,
        torch=source.exporter_version,
        onnx=metadata.version("onnx"),
        onnx_ir=metadata.version("onnx-ir"),
        onnxsim=metadata.version("onnxsim"),
        capture_opset=CAPTURE_OPSET,
        opset=graph.opset,
        passes=tuple(
            PassEntry(
                name=each.name,
                nodes_before=each.nodes_before,
                nodes_after=each.nodes_after,
                elapsed_s=each.elapsed_s,
                note=each.note,
            )
            for each in graph.history
        ),
        stages=tuple(StageRecord(name=stage.name, elapsed_s=stage.elapsed_s) for stage in stages),
    )


def _device_notes(bundle: BuiltBundle) -> tuple[str, ...]:
    return () if bundle.device_steps is None else (bundle.device_steps.build, bundle.device_steps.trtexec)
