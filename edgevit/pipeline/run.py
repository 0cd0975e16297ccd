"""Run the pipeline: module or ONNX file -> ONNX graph -> engine -> verified bundle.

Stages: capture, reference outputs, graph passes; for each format: specialize, convert to the precision, build, load,
check parity; then latency and accuracy side by side; then all bundles are published together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.errors import ImageError
from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.export.simplify import simplify
from edgevit.latency.report import LatencyReport
from edgevit.models.description import ModelDescription
from edgevit.pipeline import engine_memory, fp32_baseline
from edgevit.pipeline.accuracy import warn_of_labels
from edgevit.pipeline.build_bundle import build_bundle
from edgevit.pipeline.bundle_writer import write_bundles
from edgevit.pipeline.calibration import calibration_inputs
from edgevit.pipeline.comparison import PrecisionComparison, compare_with_fp32, evaluate_precision
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.pipeline.export_run import BuiltBundle, ExportRun, LatencyOutcome, Progress, StageTimer
from edgevit.pipeline.float32_errors import with_errors_of, with_measured_errors, with_refined_errors
from edgevit.pipeline.fp32_baseline import Fp32Baseline, build_fp32_baselines, resume_baseline
from edgevit.pipeline.onnx_model import OnnxModel
from edgevit.pipeline.preconditions import require_class_names, require_possible
from edgevit.pipeline.references import ReferenceData, find_eval_dataset, require_defined, require_images
from edgevit.pipeline.report import ExportReport
from edgevit.pipeline.side_by_side import measure_side_by_side
from edgevit.pipeline.source import Source, source_of
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.build import BuildResult, usable_version
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt import cuda
from edgevit.types import Reference

__all__ = ["ExportConfig", "run"]


def run(
    model: ModelDescription,
    config: ExportConfig,
    progress: Progress | None = None,
    *,
    captured: OnnxGraph | None = None,
    watch_memory: bool = False,
) -> ExportReport:
    """Export `model` in every format of `config`, verify the bundles and publish them together: all or none.

    `captured` is the model's graph if it has been captured before. With `watch_memory`, the report has the peak memory
    of each stage.

    Raises the error of the stage that failed; its `exit_status` is that of the command line. Nothing is left behind.
    """
    config = target_this_machine(config)
    timer = StageTimer(progress, watch_memory=watch_memory)
    runtimes = [get_runtime(fmt, _build_progress(fmt, timer)) for fmt in config.formats]
    for runtime in runtimes:
        require_possible(runtime, config, model.name)
    with store.staging(config.out) as folder, ExitStack() as engines:
        export, graph, graph_parity = prepare(model, config, timer, folder, captured=captured)
        bundles = [build_bundle(export, graph, runtime, folder) for runtime in runtimes]
        if config.verify:
            export, bundles = _measure_float32_errors(export, bundles)
            _require_parity(export, bundles, graph_parity)
        baselines = _build_baselines(export, graph, bundles, folder)
        if config.compares_engines and any(engine_memory.is_large(bundle.built) for bundle in bundles):
            bundles, baselines = _resume(bundles, baselines, timer)
        candidates = _engines_by_name(bundles, baselines)
        for built in candidates.values():
            if built.engine is not None:
                engines.enter_context(built.engine)
        latency = measure_side_by_side(export, candidates) if config.latency else LatencyOutcome()
        comparisons = _compare_precisions(export, bundles, baselines, latency.reports)
        return write_bundles(export, bundles, graph_parity=graph_parity, latency=latency, comparisons=comparisons)


def target_this_machine(config: ExportConfig) -> ExportConfig:
    """Return the configuration with this machine's TensorRT version, if it builds here and none was given."""
    versioned = [entry.name for entry in config.targets if entry.versioned_parser]
    if not versioned or config.trt_version is not None or not cuda.has_gpu():
        return config
    version, _ = usable_version(get_runtime(versioned[0]))
    return config if version is None else replace(config, trt_version=".".join(version.split(".")[:2]))


def _build_progress(fmt: str, timer: StageTimer) -> OnPhase:
    return lambda phase, done: timer.update(f"{fmt}: build, {phase} {done:.0%}")


def prepare(
    model: ModelDescription,
    config: ExportConfig,
    timer: StageTimer,
    folder: Path,
    *,
    captured: OnnxGraph | None = None,
) -> tuple[ExportRun, OnnxGraph, ParityReport]:
    """Capture the model, compute reference outputs, and apply the passes for all formats.

    Returns the state of the export, the optimized graph, and the parity of the captured one. `folder` is for temporary
    files.
    """
    require_images(model, config.images)
    source = source_of(model)
    if captured is None:
        captured = source.capture(timer, config.options)
    require_class_names(model, captured)
    references = _compute_references(model, source, config, captured, timer)
    export = ExportRun(model=model, source=source, config=config, captured=captured, references=references, timer=timer)
    export, parity = _check_captured(export)
    return export, _optimize(export, folder), parity


def _compute_references(
    model: ModelDescription, source: Source, config: ExportConfig, captured: OnnxGraph, timer: StageTimer
) -> ReferenceData:
    """Collect reference outputs, calibration inputs and labeled images; a wrong --eval folder fails first."""
    strict, threads, dataset = config.strict, config.options.threads, None
    if config.eval is not None:
        dataset = find_eval_dataset(model, config.eval, captured.outputs, batch=config.checked_batch, strict=strict)
    with timer.stage(f"reference outputs ({source.title})"):
        outputs = source.references(
            captured, images=config.images, strict=strict, verify=config.verify, threads=threads
        )
        if config.verify:
            require_defined(outputs, title=source.title, undefined_weights=source.undefined_weights)
    calibration = outputs[0].inputs
    if config.calib is not None:
        calibration = calibration_inputs(model, config.calib, strict=strict)
    return ReferenceData(outputs=outputs, calibration=calibration, eval_dataset=dataset)


def _check_captured(export: ExportRun) -> tuple[ExportRun, ParityReport]:
    """Compare the captured graph with the model itself.

    Returns the export, whose references have the float32 error of every row that needs it, and the comparison.
    """
    config = export.config
    if not config.verify:
        return export, ParityReport(())
    with export.timer.stage("parity of the captured graph"):
        run_graph = graph_evaluator(export.captured, threads=config.options.threads)

        def compare_with(references: Sequence[Reference]) -> ParityReport:
            return compare("ONNX", run_graph, references, precision="fp32", batches=(config.checked_batch,))

        report = compare_with(export.references.outputs)
        refined = with_refined_errors(export.references.outputs, report, export.source.float32_errors)
        if all(new is old for new, old in zip(refined, export.references.outputs, strict=True)):
            return export, report
        return replace(export, references=replace(export.references, outputs=refined)), compare_with(refined)


def _optimize(export: ExportRun, folder: Path) -> OnnxGraph:
    """Apply our passes, then onnxsim if the user asks for it and it helps."""
    threads = export.config.options.threads
    with export.timer.stage("graph passes"):
        graph = passes.optimize(export.captured)
    if not export.config.onnxsim:
        return graph
    feeds = export.references.first_rows(export.config.checked_batch)
    with export.timer.stage("onnxsim"):
        return simplify(graph, lambda candidate: graph_evaluator(candidate, threads=threads)(feeds), folder=folder)


def _measure_float32_errors(export: ExportRun, bundles: list[BuiltBundle]) -> tuple[ExportRun, list[BuiltBundle]]:
    """Measure the float32 error on the rows on which a graph or an engine fails in fp32, and judge it by that."""
    report = sum((bundle.parity for bundle in bundles), ParityReport(()))
    references = with_measured_errors(export.references.outputs, report, export.source.float32_errors)
    if all(new is old for new, old in zip(references, export.references.outputs, strict=True)):
        return export, bundles
    judged = [replace(bundle, parity=with_errors_of(bundle.parity, references)) for bundle in bundles]
    return replace(export, references=replace(export.references, outputs=references)), judged


def _require_parity(export: ExportRun, bundles: Sequence[BuiltBundle], graph_parity: ParityReport) -> None:
    """Raise ParityError if a stage has failed, explained if the model has modules; that takes PyTorch."""
    if isinstance(export.model, OnnxModel):
        sum((bundle.parity for bundle in bundles), graph_parity).require()
        return
    from edgevit.pipeline.explain.exports import require_parity

    require_parity(export, bundles, graph_parity)


def _build_baselines(
    export: ExportRun, graph: OnnxGraph, bundles: Sequence[BuiltBundle], folder: Path
) -> dict[str, Fp32Baseline]:
    """Build an fp32 engine for each format, unless the bundles are fp32."""
    if export.config.options.precision == "fp32":
        return {}

    def specialize(fmt: str) -> OnnxGraph:
        return passes.specialize(graph, fmt, opset=export.config.opset_for(fmt))

    return build_fp32_baselines(export, bundles, specialize, folder / "fp32")


def _resume(
    bundles: Sequence[BuiltBundle], baselines: Mapping[str, Fp32Baseline], timer: StageTimer
) -> tuple[list[BuiltBundle], dict[str, Fp32Baseline]]:
    """Load the engines again that were closed for their size."""
    with timer.stage("load large engines again"):
        resumed = [replace(each, built=engine_memory.resume(each.built, each.options)) for each in bundles]
        of_formats = {each.fmt: each for each in bundles}
        return resumed, {fmt: resume_baseline(each, of_formats[fmt]) for fmt, each in baselines.items()}


def _engines_by_name(bundles: Sequence[BuiltBundle], baselines: Mapping[str, Fp32Baseline]) -> dict[str, BuildResult]:
    """Return the engines that run here by the name they are measured under."""
    found = {bundle.fmt: bundle.built for bundle in bundles}
    for fmt, baseline in baselines.items():
        if baseline.built is not None:
            found[fp32_baseline.candidate_name(fmt)] = baseline.built
    return {name: built for name, built in found.items() if built.engine is not None}


def _compare_precisions(
    export: ExportRun,
    bundles: Sequence[BuiltBundle],
    baselines: Mapping[str, Fp32Baseline],
    latencies: Mapping[str, LatencyReport],
) -> dict[str, PrecisionComparison]:
    """Compare each bundle in lower precision with fp32. Raises ParityError if one loses too much accuracy."""
    dataset, found, evaluations = export.references.eval_dataset, {}, None
    skipped: tuple[ImageError, ...] = ()  # the same for every bundle
    for bundle in bundles:
        baseline = baselines.get(bundle.fmt)
        if baseline is None:
            continue
        if dataset is not None:
            evaluations, skipped = evaluate_precision(bundle, baseline, dataset, export.timer)
        comparison = compare_with_fp32(
            bundle,
            baseline,
            evaluations=evaluations,
            latencies=latencies,
            allowed_drop=export.config.allowed_drop,
        )
        comparison.require_accuracy()
        found[bundle.fmt] = comparison
    if dataset is not None and evaluations is not None:
        warn_of_labels(evaluations[0], skipped, dataset.count)
    return found
