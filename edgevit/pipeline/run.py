"""Run the pipeline: module or ONNX file -> ONNX graph -> engine -> verified bundle.

Stages: capture, reference outputs, graph passes; for each format: specialize, convert to the precision, build, load,
check parity; then latency and accuracy side by side; then all bundles are published together.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import bundle_name
from edgevit.bundles.dense import DENSE_TASKS
from edgevit.bundles.latency_file import artifact_details
from edgevit.cpu import require_vnni
from edgevit.dense.outputs import class_count
from edgevit.errors import ExportError, MeasureError, UsageError
from edgevit.export import forms, passes
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.refusal import require_supported
from edgevit.export.macs import graph_work
from edgevit.export.quantization.fp16 import PrecisionPlan
from edgevit.export.quantization.sensitivity import QuantizationPlan
from edgevit.export.simplify import simplify
from edgevit.files import MODEL_FILE, has_control_characters
from edgevit.latency.candidate import Candidate, candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.progress import MeasureProgress, OnMeasure
from edgevit.latency.report import LatencyReport
from edgevit.models.description import ModelDescription
from edgevit.pipeline import engine_memory, fp32_baseline
from edgevit.pipeline.bundle_writer import write_bundles
from edgevit.pipeline.calibration import calibration_inputs
from edgevit.pipeline.comparison import PrecisionComparison, compare_with_fp32, evaluate_precision
from edgevit.pipeline.conditioning import measured, refine, with_errors_of
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.evaluators import fp16_evaluator, graph_evaluator
from edgevit.pipeline.export_run import (
    BuiltBundle,
    ExportRun,
    LatencyOutcome,
    Progress,
    StageTimer,
    translate_write_errors,
)
from edgevit.pipeline.fp32_baseline import Fp32Baseline, build_fp32_baselines, resume_baseline
from edgevit.pipeline.onnx_model import OnnxModel
from edgevit.pipeline.precision import PrecisionConverter
from edgevit.pipeline.references import ReferenceData, find_eval_dataset, require_defined, require_images
from edgevit.pipeline.report import ExportReport
from edgevit.pipeline.source import Source, source_of
from edgevit.runtimes.base import BuildOptions, Engine, OnPhase, Runtime
from edgevit.runtimes.build import BuildResult, build_engine, open_built, usable_version
from edgevit.runtimes.loading import Loading
from edgevit.runtimes.parity import ParityReport, compare, references_for
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt.trtexec import device_steps
from edgevit.types import Dim, Reference

__all__ = ["ExportConfig", "run"]

MAX_ENGINE_ROUNDS = 4  # builds of an int8 engine; each has more layers in float than the one before


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
        _require_possible(runtime, config, model.name)
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
        latency = _measure_latency(export, candidates) if config.latency else LatencyOutcome()
        comparisons = _compare_precisions(export, bundles, baselines, latency.reports)
        return write_bundles(export, bundles, graph_parity=graph_parity, latency=latency, comparisons=comparisons)


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
    _require_class_names(model, captured)
    references = _compute_references(model, source, config, captured, timer)
    export = ExportRun(model=model, source=source, config=config, captured=captured, references=references, timer=timer)
    export, parity = _check_captured(export)
    return export, _optimize(export, folder), parity


def _measure_float32_errors(export: ExportRun, bundles: list[BuiltBundle]) -> tuple[ExportRun, list[BuiltBundle]]:
    """Measure the float32 error on the rows on which a graph or an engine fails in fp32, and judge it by that."""
    report = sum((bundle.parity for bundle in bundles), ParityReport(()))
    references = measured(export.references.outputs, report, export.source.float32_errors)
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


def target_this_machine(config: ExportConfig) -> ExportConfig:
    """Return the configuration with this machine's TensorRT version, if it builds here and none was given."""
    versioned = [entry.name for entry in config.targets if entry.versioned_parser]
    if not versioned or config.trt_version is not None or not cuda.has_gpu():
        return config
    version, _ = usable_version(get_runtime(versioned[0]))
    return config if version is None else replace(config, trt_version=".".join(version.split(".")[:2]))


def _require_possible(runtime: Runtime, config: ExportConfig, model_name: str) -> None:
    """Raise before the long work if a package is missing, or the folder of the bundle holds something else."""
    if not runtime.format.builds_on_device:
        runtime.load()
    runtime.require_precision(config.options.precision)
    if config.int8_range == "full" and runtime.format.int8_on_cpu:
        require_vnni(f"{model_name} for {runtime.fmt}")
    store.require_replaceable(config.out / bundle_name(model_name, config.options.precision, runtime.fmt))


def _build_progress(fmt: str, timer: StageTimer) -> OnPhase:
    return lambda phase, done: timer.update(f"{fmt}: build, {phase} {done:.0%}")


def _require_class_names(model: ModelDescription, graph: OnnxGraph) -> None:
    """Raise UsageError if the model's class names could steer a terminal, or it has another number of classes."""
    for name in model.classes or ():
        if has_control_characters(name):
            raise UsageError(f"the class name {name!r} has control characters; give other names with --classes FILE")
    count = _class_count(model, graph)
    if model.classes is not None and count not in (None, len(model.classes)):
        raise UsageError(
            f"{len(model.classes)} class names for {count} classes; give one name a line, in the order of the "
            "logits (--classes FILE)"
        )


def _class_count(model: ModelDescription, graph: OnnxGraph) -> Dim | None:
    """Return the number of classes by the outputs; None if they do not say, as detections selected in the graph."""
    if model.origin.task in DENSE_TASKS:
        return class_count(graph.outputs, model.origin.output_form)
    logits = graph.outputs[0].shape if graph.outputs else ()
    return logits[1] if len(logits) == 2 else None


def _compute_references(
    model: ModelDescription, source: Source, config: ExportConfig, captured: OnnxGraph, timer: StageTimer
) -> ReferenceData:
    """Collect reference outputs, calibration inputs and labeled images; a wrong --eval folder fails first."""
    dataset = None
    if config.eval is not None:
        dataset = find_eval_dataset(model, config.eval, captured.outputs, batch=config.batch, strict=config.strict)
    strict, threads = config.strict, config.options.threads
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
            return compare("ONNX", run_graph, references, precision="fp32", batches=(config.batch,))

        report = compare_with(export.references.outputs)
        refined = refine(export.references.outputs, report, export.source.float32_errors)
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
    feeds = export.references.first_rows(export.config.batch)
    with export.timer.stage("onnxsim"):
        return simplify(graph, lambda candidate: graph_evaluator(candidate, threads=threads)(feeds), folder=folder)


def build_bundle(export: ExportRun, graph: OnnxGraph, runtime: Runtime, folder: Path) -> BuiltBundle:
    """Build one bundle in `folder`, load its engine if it runs here, and check parity."""
    config, timer, fmt = export.config, export.timer, runtime.fmt
    precision = config.options.precision
    bundle_folder = folder / bundle_name(export.model.name, precision, fmt)
    with timer.stage(f"{fmt}: specialize, check"):
        specialized = check(forms.specialize(graph, fmt, config.form, precision=precision, opset=config.opset_for(fmt)))
        require_supported(specialized, fmt, config.target_version)
        steps = None
        if runtime.format.builds_on_device:
            bundle = config.out / bundle_folder.name
            steps = device_steps(bundle, config.options, config.target_version, inputs=specialized.inputs)
    converter = _converter(export)
    converted, plan = converter.convert(specialized, fmt)
    for round_ in itertools.count(1):
        parity = _check_graphs(export, specialized, converted, fmt)  # before the engine is in memory, too
        options = _engine_options(config, runtime, plan)
        built = _build_engine(export, runtime, converted, plan, options, bundle_folder)
        engine_parity = _check_engine(export, built)
        attempt = BuiltBundle(
            runtime=runtime,
            folder=bundle_folder,
            options=options,
            specialized=specialized,
            graph=converted,
            precision_plan=plan,
            built=built,
            parity=parity + engine_parity,
            device_steps=steps,
        )
        engine_memory.close_if_unneeded(built, config)
        if not isinstance(plan, QuantizationPlan) or engine_parity.first_failed_stage is None:
            return attempt
        more = converter.revert_more(specialized, fmt, plan) if round_ < MAX_ENGINE_ROUNDS else None
        if more is None:
            return attempt
        converted, plan = more
        _discard(attempt)
    raise AssertionError("unreachable: the rounds are bounded")


def _engine_options(
    config: ExportConfig, runtime: Runtime, plan: PrecisionPlan | QuantizationPlan | None
) -> BuildOptions:
    """Return the options of an engine: its float operators are less precise where that is faster and allowed."""
    options = config.options_for(runtime)
    if isinstance(plan, QuantizationPlan) and plan.is_float_for_speed_alone and not options.session.chosen:
        return replace(options, session=runtime.int8_session())
    return options


def _build_engine(
    export: ExportRun,
    runtime: Runtime,
    graph: OnnxGraph,
    plan: PrecisionPlan | QuantizationPlan | None,
    options: BuildOptions,
    folder: Path,
) -> BuildResult:
    """Build the engine of `graph` into a new folder, and load it if it runs here."""
    timer, fmt = export.timer, runtime.fmt
    with timer.stage(f"{fmt}: build"), translate_write_errors(folder):
        folder.mkdir()
        graph.save(folder / MODEL_FILE)
        built = build_engine(runtime, folder / MODEL_FILE, folder, options)
    with timer.stage(f"{fmt}: load"):
        built = open_built(
            built,
            options,
            expected_fraction=plan.fraction if plan is not None else None,
            node_macs=graph_work(graph, batch=options.batch).node_macs,
        )
    _require_inputs(built, graph)
    return built


def _discard(bundle: BuiltBundle) -> None:
    """Close the engine of a bundle whose layers are chosen again, and delete its folder."""
    if bundle.built.engine is not None:
        bundle.built.engine.close()
    shutil.rmtree(bundle.folder)


def _converter(export: ExportRun) -> PrecisionConverter:
    config = export.config
    return PrecisionConverter(
        precision=config.options.precision,
        references=export.references,
        batch=config.batch,
        threads=config.options.threads,
        check_parity=config.verify,
        max_drop=config.allowed_drop,
        int8_range=config.int8_range,
        keep_float=config.keep_float,
        groups=config.groups,
        timer=export.timer,
    )


def _require_inputs(built: BuildResult, graph: OnnxGraph) -> None:
    """Raise ExportError if the engine lacks an input of the graph: OpenVINO removes unused inputs."""
    if built.engine is None:
        return
    present = {spec.name for spec in built.engine.inputs}
    removed = [spec.name for spec in graph.inputs if spec.name not in present]
    if removed:
        raise ExportError(
            f"no output depends on input {removed[0]}, and {built.runtime.title} removes it; "
            "remove the argument from forward()"
        )


def _check_graphs(export: ExportRun, specialized: OnnxGraph, converted: OnnxGraph, fmt: str) -> ParityReport:
    """Compare the specialized fp32 graph, and the graph in lower precision if there is one, with the references."""
    if not export.config.verify:
        return ParityReport(())
    options, references = export.config.options, export.references.outputs
    precision, batches, threads = options.precision, options.batch_sizes[:1], options.threads
    with export.timer.stage(f"{fmt}: parity of the graph"):
        run_graph = graph_evaluator(specialized, threads=threads)
        report = compare(f"{fmt}: optimized ONNX", run_graph, references, precision="fp32", batches=batches)
        if converted is not specialized:
            del run_graph  # each evaluator holds a copy of the weights
            run_graph = fp16_evaluator(converted, threads=threads)
            own = references_for(references, precision)
            report += compare(f"{fmt}: {precision} ONNX", run_graph, own, precision=precision, batches=batches)
    return report


def _check_engine(export: ExportRun, built: BuildResult) -> ParityReport:
    """Compare the engine with the references, if it runs here."""
    if not export.config.verify or built.engine is None:
        return ParityReport(())
    options, fmt = export.config.options, built.runtime.fmt
    own = references_for(export.references.outputs, options.precision)
    with export.timer.stage(f"{fmt}: parity of the engine"):
        return compare(
            f"{fmt}: engine", built.engine.run, own, precision=options.precision, batches=options.batch_sizes
        )


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


def _measure_latency(export: ExportRun, engines: Mapping[str, BuildResult]) -> LatencyOutcome:
    """Measure the model itself and all engines side by side, in one interleaved run.

    A candidate that cannot be measured is left out with a reason: the bundles are built and verified by now.
    """
    if not engines:
        return LatencyOutcome()
    options = export.config.options
    feeds = export.references.outputs[0].batch(options.batch_to_measure)
    baseline = export.source.engine(export.captured, threads=options.threads)
    loaded: dict[str, tuple[Engine, Loading | None]] = {export.source.baseline: (baseline, None)}
    loaded |= {name: (built.engine, built.loading) for name, built in engines.items() if built.engine is not None}
    candidates: list[Candidate] = []
    problems: list[str] = []
    reports: Sequence[LatencyReport] = ()
    with export.timer.stage("latency", timed_calls=True):
        for name, (engine, loading) in loaded.items():
            with _collect_problem(problems):
                details = _measured_files(engines.get(name))
                candidates.append(
                    candidate_from_engine(
                        name, engine, feeds, threads=options.threads, loading=loading, details=details
                    )
                )
        with _collect_problem(problems):
            reports = measure(candidates, export.config.measure_plan, _show_latency(export.timer)) if candidates else ()
    return LatencyOutcome(reports={report.name: report for report in reports}, problems=tuple(problems))


def _measured_files(built: BuildResult | None) -> dict[str, str]:
    """Return the details that tie a measurement to an engine; empty for the model itself."""
    if built is None or built.artifact is None or built.precision is None:
        return {}
    engine = built.artifact.path
    return artifact_details(engine, engine.with_name(MODEL_FILE), precision=built.precision.actual)


@contextmanager
def _collect_problem(problems: list[str]) -> Iterator[None]:
    """Add the message of a MeasureError to `problems` instead of raising it."""
    try:
        yield
    except MeasureError as error:
        problems.append(str(error))


def _show_latency(timer: StageTimer) -> OnMeasure:
    """Show the progress of a latency measurement as the state of its stage."""

    def on_progress(progress: MeasureProgress) -> None:
        timer.update(f"latency: {progress}")

    return on_progress


def _compare_precisions(
    export: ExportRun,
    bundles: Sequence[BuiltBundle],
    baselines: Mapping[str, Fp32Baseline],
    latencies: Mapping[str, LatencyReport],
) -> dict[str, PrecisionComparison]:
    """Compare each bundle in lower precision with fp32. Raises ParityError if one loses too much accuracy."""
    dataset, found = export.references.eval_dataset, {}
    for bundle in bundles:
        baseline = baselines.get(bundle.fmt)
        if baseline is None:
            continue
        comparison = compare_with_fp32(
            bundle,
            baseline,
            evaluations=None if dataset is None else evaluate_precision(bundle, baseline, dataset, export.timer),
            latencies=latencies,
            allowed_drop=export.config.allowed_drop,
        )
        comparison.require_accuracy()
        found[bundle.fmt] = comparison
    if dataset is not None:
        dataset.warn_of_unreadable()
    return found
