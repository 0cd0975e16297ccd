"""The road from a model to its bundles: every stage takes what the one before it made.

subject -> captured graph -> lowered graph -> artefact -> engine -> parity -> latency -> bundle
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from edgevit.bundles import bundle as bundles
from edgevit.bundles import store
from edgevit.errors import ExportError
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.rules import lint
from edgevit.export.lint.targets import parse_target
from edgevit.export.quantization.sensitivity import QuantizationPlan
from edgevit.export.simplify import simplify
from edgevit.latency.measure import LatencyReport, candidate_from_engine, measure
from edgevit.models.loading import LoadedModel
from edgevit.models.reference import compute_references
from edgevit.pipeline.bundle_writer import publish
from edgevit.pipeline.config import ExportConfig, Progress, StageTimer
from edgevit.pipeline.export_run import BuiltBundle, Fp32Baseline, writing
from edgevit.pipeline.fp32_baseline import baselines_of, fp32_name, verdicts_of
from edgevit.pipeline.precision import evaluator, to_precision, typed_evaluator
from edgevit.pipeline.references import ReferenceData, calibration_inputs, find_exam, require_images
from edgevit.pipeline.report import ExportReport
from edgevit.runtimes.base import OnPhase, Runtime
from edgevit.runtimes.build import BuildResult, build_engine, open_built
from edgevit.runtimes.parity import ParityReport, compare, references_for
from edgevit.runtimes.pytorch import TorchEngine
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt.trtexec import DeviceSteps, device_steps
from edgevit.types import Array, Reference

__all__ = ["ExportConfig", "run"]


def run(subject: LoadedModel, recipe: ExportConfig, progress: Progress | None = None) -> ExportReport:
    """Makes the bundles of `recipe`, proves them and publishes them together: all of them, or none.

    Raises the error of the stage that failed, whose `exit_status` says which; nothing is left behind then.
    """
    clock = StageTimer(progress)
    recipe = recipe.for_machine()
    require_images(subject, recipe.images)
    runtimes = [get_runtime(fmt, _telling(fmt, clock)) for fmt in recipe.formats]
    for runtime in runtimes:  # what is missing or in the way is said before the long work, not after it
        if not runtime.format.builds_on_device:
            runtime.load()
        runtime.require_precision(recipe.options.precision)
        store.require_replaceable(recipe.out / _bundle_name(subject, recipe, runtime))
    with store.staging(recipe.out) as folder, ExitStack() as engines:
        captured = _capture(subject, recipe, clock)
        evidence = _gather(subject, captured, recipe, clock)
        judged = _judge_capture(captured, evidence.references, recipe, clock)
        graph = _optimise(captured, evidence.references, recipe, folder, clock)
        made = [_make(evidence, recipe, graph, runtime, folder, clock) for runtime in runtimes]
        if recipe.verify:
            sum((item.parity for item in made), judged).require()
        baselines = baselines_of(graph, recipe, made, folder / "fp32", clock)
        for built in (*(item.built for item in made), *(each.built for each in baselines.values())):
            if built is not None and built.engine is not None:
                engines.enter_context(built.engine)
        latencies = _measure(evidence, recipe, captured, made, baselines, clock)
        verdicts = verdicts_of(evidence, recipe, made, baselines, latencies, clock)
        return publish(evidence, recipe, captured, judged, made, latencies, verdicts, clock)


def _bundle_name(subject: LoadedModel, recipe: ExportConfig, runtime: Runtime) -> str:
    return bundles.bundle_name(subject.name, recipe.options.precision, runtime.fmt)


def _telling(fmt: str, clock: StageTimer) -> OnPhase:
    return lambda phase, done: clock.at(f"{fmt}: build, {phase} {done:.0%}")


def _capture(subject: LoadedModel, recipe: ExportConfig, clock: StageTimer) -> OnnxGraph:
    example, dynamic = subject.example, recipe.options.dynamic_batch is not None
    if dynamic and len(example[0]) == 1:  # PyTorch takes a batch of one for a constant
        example = tuple(tensor.repeat(2, *([1] * (tensor.ndim - 1))) for tensor in example)
    captured = capture(
        subject.module,
        example,
        dynamic_batch=dynamic,
        input_names=subject.input_names,
        output_names=subject.output_names,
    )
    clock.add("capture (torch.export)", captured.capture_s)
    clock.add("translate to ONNX", captured.translate_s)
    for spec in captured.graph.outputs:
        if not spec.shape:
            raise ExportError(f"the output {spec} has no batch; return per-image results, with the batch as first axis")
        if dynamic and spec.shape[0] != "batch":
            raise ExportError(f"the output {spec} does not follow the batch; export with a static --batch")
    return captured.graph


def _gather(subject: LoadedModel, captured: OnnxGraph, recipe: ExportConfig, clock: StageTimer) -> ReferenceData:
    """What the run is judged on; labelled images are looked for first, since nothing long depends on them."""
    exam = None
    if recipe.eval is not None:
        exam = find_exam(subject, recipe.eval, captured.outputs[0], batch=recipe.options.batch_sizes[0])
    with clock.stage("PyTorch's answers"):
        references = compute_references(subject, [spec.name for spec in captured.outputs], images=recipe.images)
    calibration = references[0].inputs if recipe.calib is None else calibration_inputs(subject, recipe.calib)
    return ReferenceData(subject=subject, references=references, calibration=calibration, exam=exam)


def _judge_capture(
    captured: OnnxGraph, references: Sequence[Reference], recipe: ExportConfig, clock: StageTimer
) -> ParityReport:
    if not recipe.verify:
        return ParityReport(())
    with clock.stage("parity of the captured graph"):
        return compare(
            "ONNX",
            evaluator(captured, recipe),
            references,
            precision="fp32",
            batches=recipe.options.batch_sizes[:1],
        )


def _optimise(
    captured: OnnxGraph, references: Sequence[Reference], recipe: ExportConfig, folder: Path, clock: StageTimer
) -> OnnxGraph:
    """The graph after our passes, and after onnxsim where that helps."""
    with clock.stage("graph passes"):
        graph = passes.optimize(captured)
    first = references[0]
    rows = [0] * recipe.options.batch_sizes[0]
    feeds: dict[str, Array] = {name: array[rows] for name, array in first.inputs.items()}
    with clock.stage("onnxsim"):
        return simplify(graph, lambda candidate: evaluator(candidate, recipe)(feeds), folder=folder)


def _make(
    evidence: ReferenceData, recipe: ExportConfig, graph: OnnxGraph, runtime: Runtime, folder: Path, clock: StageTimer
) -> BuiltBundle:
    options, fmt = recipe.options_for(runtime), runtime.fmt
    place = folder / _bundle_name(evidence.subject, recipe, runtime)
    with clock.stage(f"{fmt}: lower, check"):
        lowered = check(passes.specialize(graph, fmt, precision=options.precision, opset=recipe.opset_for(fmt)))
        steps = _steps(lowered, recipe, recipe.out / place.name) if runtime.format.builds_on_device else None
    typed, typing = to_precision(lowered, evidence, recipe, fmt, clock)
    with clock.stage(f"{fmt}: build"), writing(place):
        place.mkdir()
        typed.save(place / bundles.MODEL)
        built = build_engine(runtime, place / bundles.MODEL, place, options)
    with clock.stage(f"{fmt}: load"):
        built = open_built(built, options, share=typing.share if isinstance(typing, QuantizationPlan) else None)
    _require_inputs(built, typed)
    parity = _judge(lowered, typed, built, evidence.references, recipe, clock)
    return BuiltBundle(
        runtime=runtime, folder=place, graph=typed, typing=typing, built=built, parity=parity, steps=steps
    )


def _require_inputs(built: BuildResult, graph: OnnxGraph) -> None:
    """Raises ExportError where the engine lacks an input of the graph: OpenVINO leaves out what nothing depends on."""
    taken = {spec.name for spec in built.engine.inputs} if built.engine is not None else set()
    lost = [spec.name for spec in graph.inputs if spec.name not in taken]
    if built.engine is not None and lost:
        raise ExportError(
            f"no output depends on the input {lost[0]}, which {built.runtime.title} leaves out; drop it from forward"
        )


def _steps(graph: OnnxGraph, recipe: ExportConfig, bundle: Path) -> DeviceSteps:
    """How the engine is built on the device, once the graph is seen to be one that TensorRT's parser takes.

    Raises ExportError with the first thing that it does not.
    """
    target = parse_target(f"trt:{recipe.target_version}")
    for finding in lint(graph, target):
        if finding.level == "error":
            module = f" (PyTorch module {finding.module})" if finding.module else ""
            where = f"the graph is not fit for {target}, at {finding.node}{module}"
            raise ExportError(f"{where}: {finding.why}; {finding.remedy}")
    return device_steps(bundle, recipe.options, recipe.target_version, inputs=graph.inputs)


def _judge(
    lowered: OnnxGraph,
    typed: OnnxGraph,
    built: BuildResult,
    references: Sequence[Reference],
    recipe: ExportConfig,
    clock: StageTimer,
) -> ParityReport:
    """The finished graph, and the engine where it runs here."""
    if not recipe.verify:
        return ParityReport(())
    fmt, batches, precision = built.runtime.fmt, recipe.options.batch_sizes, recipe.options.precision
    own = references_for(references, precision)
    with clock.stage(f"{fmt}: parity"):
        report = compare(
            f"{fmt}: optimised ONNX", evaluator(lowered, recipe), references, precision="fp32", batches=batches[:1]
        )
        if typed is not lowered:
            report += compare(
                f"{fmt}: typed ONNX",
                typed_evaluator(typed, recipe),
                own,
                precision=precision,
                batches=batches[:1],
            )
        if built.engine is not None:
            report += compare(f"{fmt}: engine", built.engine.run, own, precision=precision, batches=batches)
    return report


def _measure(
    evidence: ReferenceData,
    recipe: ExportConfig,
    captured: OnnxGraph,
    made: Sequence[BuiltBundle],
    baselines: Mapping[str, Fp32Baseline],
    clock: StageTimer,
) -> dict[str, LatencyReport]:
    """PyTorch and every engine that runs here side by side, in one interleaved run."""
    engines = {item.runtime.fmt: item.built for item in made}
    engines |= {fp32_name(fmt): each.built for fmt, each in baselines.items() if each.built is not None}
    running = {name: built for name, built in engines.items() if built.engine is not None}
    if not recipe.latency or not running:
        return {}
    options, reference = recipe.options, evidence.references[0]
    batch = options.dynamic_batch.optimum if options.dynamic_batch else options.batch
    feeds = reference.batch(batch)
    torch_engine = TorchEngine(evidence.subject.module, captured.inputs, captured.outputs, threads=options.threads)
    candidates = [candidate_from_engine("torch", torch_engine, feeds, threads=options.threads)]
    for name, built in running.items():
        assert built.engine is not None
        candidates.append(
            candidate_from_engine(name, built.engine, feeds, threads=options.threads, loading=built.loading)
        )
    with clock.stage("latency"):
        return {report.name: report for report in measure(candidates, recipe.plan)}
