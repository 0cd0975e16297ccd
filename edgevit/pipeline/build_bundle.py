"""Build the bundle of one format: specialize, convert to the precision, build, load, check parity."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import bundle_name
from edgevit.errors import ExportError
from edgevit.export import forms
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.refusal import require_supported
from edgevit.export.macs import graph_work
from edgevit.export.quantization.fp16 import PrecisionPlan
from edgevit.export.quantization.sensitivity import QuantizationPlan
from edgevit.files import MODEL_FILE
from edgevit.pipeline import engine_memory
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.evaluators import deployed_evaluator, graph_evaluator
from edgevit.pipeline.export_run import BuiltBundle, ExportRun
from edgevit.pipeline.onnx_model import OnnxModel
from edgevit.pipeline.precision import PrecisionConverter
from edgevit.runtimes.base import BuildOptions, Runtime
from edgevit.runtimes.build import BuildResult, build_engine, open_built
from edgevit.runtimes.parity import ParityReport, compare, references_for
from edgevit.runtimes.tensorrt.trtexec import device_steps

MAX_ENGINE_ROUNDS = 4  # builds of an int8 engine; each has more layers in float than the one before


def build_bundle(export: ExportRun, graph: OnnxGraph, runtime: Runtime, folder: Path) -> BuiltBundle:
    """Build one bundle in `folder`, load its engine if it runs here, and check parity.

    An int8 engine that misses parity is built again with more layers in float, in at most MAX_ENGINE_ROUNDS rounds.
    """
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
    converter = _converter(export, specialized, fmt)
    converted, plan = converter.convert()
    for round_ in itertools.count(1):
        parity = _check_graphs(export, specialized, converted, fmt)  # before the engine is in memory, too
        options, built, engine_parity = _build_fastest(export, runtime, converted, plan, bundle_folder)
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
        engine_memory.close_if_unneeded(built, runs_later=config.compares_engines)
        if not isinstance(plan, QuantizationPlan) or _passes(engine_parity):
            return attempt
        more = converter.revert_more(plan) if round_ < MAX_ENGINE_ROUNDS else None
        if more is None:
            return attempt
        converted, plan = more
        _discard(built, bundle_folder)
    raise AssertionError("unreachable: the rounds are bounded")


def _passes(engine_parity: ParityReport) -> bool:
    """Return whether no comparison of an engine fails; nothing is compared without a check, or if it does not run."""
    return engine_parity.first_failed_stage is None


def _build_fastest(
    export: ExportRun,
    runtime: Runtime,
    graph: OnnxGraph,
    plan: PrecisionPlan | QuantizationPlan | None,
    folder: Path,
) -> tuple[BuildOptions, BuildResult, ParityReport]:
    """Build and check the engine with the fastest options; if it misses parity, with those of the configuration.

    Returns the options that the engine has, too.
    """
    fastest, plain = _fastest_options(export.config, runtime, plan), export.config.options_for(runtime)
    built, parity = _build_and_check(export, runtime, graph, plan, fastest, folder)
    if _passes(parity) or fastest == plain:
        return fastest, built, parity
    _discard(built, folder)
    built, parity = _build_and_check(export, runtime, graph, plan, plain, folder)
    return plain, built, parity


def _fastest_options(
    config: ExportConfig, runtime: Runtime, plan: PrecisionPlan | QuantizationPlan | None
) -> BuildOptions:
    """Return the options of an engine, with less precise float operators if they are faster and the plan allows it."""
    options = config.options_for(runtime)
    if isinstance(plan, QuantizationPlan) and plan.is_float_for_speed_alone and not options.session.chosen:
        return replace(options, session=runtime.int8_session())
    return options


def _build_and_check(
    export: ExportRun,
    runtime: Runtime,
    graph: OnnxGraph,
    plan: PrecisionPlan | QuantizationPlan | None,
    options: BuildOptions,
    folder: Path,
) -> tuple[BuildResult, ParityReport]:
    """Build the engine of `graph` into a new folder; if it runs here, load it and compare its outputs."""
    timer, fmt = export.timer, runtime.fmt
    with timer.stage(f"{fmt}: build"), store.translate_write_errors(folder):
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
    _require_inputs(export, built, graph)
    return built, _check_engine(export, built)


def _discard(built: BuildResult, folder: Path) -> None:
    """Close an engine that is built again, and delete the folder of its bundle."""
    if built.engine is not None:
        built.engine.close()
    shutil.rmtree(folder)


def _converter(export: ExportRun, graph: OnnxGraph, fmt: str) -> PrecisionConverter:
    config = export.config
    return PrecisionConverter(
        graph=graph,
        fmt=fmt,
        precision=config.options.precision,
        references=export.references,
        batch=config.checked_batch,
        threads=config.options.threads,
        check_parity=config.verify,
        max_drop=config.allowed_drop,
        int8_range=config.int8_range,
        keep_float=config.keep_float,
        groups=config.groups,
        timer=export.timer,
    )


def _require_inputs(export: ExportRun, built: BuildResult, graph: OnnxGraph) -> None:
    """Raise ExportError if the engine lacks an input of the graph: OpenVINO removes unused inputs."""
    if built.engine is None:
        return
    present = {spec.name for spec in built.engine.inputs}
    removed = [spec.name for spec in graph.inputs if spec.name not in present]
    if removed:
        place = "input from the file" if isinstance(export.model, OnnxModel) else "argument from forward()"
        raise ExportError(
            f"no output depends on input {removed[0]}, and {built.runtime.title} removes it; remove the {place}"
        )


def _check_graphs(export: ExportRun, specialized: OnnxGraph, converted: OnnxGraph, fmt: str) -> ParityReport:
    """Compare the specialized fp32 graph, and the graph in lower precision if there is one, with the references."""
    if not export.config.verify:
        return ParityReport(())
    options, references = export.config.options, export.references.outputs
    precision, batches, threads = options.precision, (options.smallest_batch,), options.threads
    with export.timer.stage(f"{fmt}: parity of the graph"):
        run_graph = graph_evaluator(specialized, threads=threads)
        report = compare(f"{fmt}: optimized ONNX", run_graph, references, precision="fp32", batches=batches)
        if converted is not specialized:
            del run_graph  # each evaluator holds a copy of the weights
            run_graph = deployed_evaluator(converted, threads=threads)
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
