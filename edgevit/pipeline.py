"""The road from a model to its bundles: every stage takes what the one before it made.

subject -> captured graph -> lowered graph -> artefact -> engine -> parity -> latency -> bundle
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch

import edgevit
from edgevit.device import judged_batches
from edgevit.engines import Built, build_engine, open_built, spec_entries
from edgevit.errors import EdgevitError, ExportError, PrecisionError, UsageError
from edgevit.evidence import ask_pytorch, calibration_photos
from edgevit.export import passes
from edgevit.export.capture import CAPTURE_OPSET, capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint import lint
from edgevit.export.lint_targets import parse_target, parse_version
from edgevit.export.passes.simplify import simplify
from edgevit.export.precision import PrecisionPlan, emulate_fp16, to_fp16
from edgevit.latency.environment import Environment
from edgevit.latency.measure import LatencyReport, MeasurePlan, contestant, measure
from edgevit.report import BundleReport, RunReport, StageTime, latency_figures
from edgevit.runtimes import bundle as bundles
from edgevit.runtimes.base import BuildOptions, Runtime
from edgevit.runtimes.onnxruntime import OnnxFile, OnnxRuntimeEngine
from edgevit.runtimes.parity import ParityReport, Reference, compare
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt_plan import DeviceSteps, device_steps
from edgevit.runtimes.torch_reference import TorchEngine
from edgevit.subject import Subject
from edgevit.tensors import Array

NEWEST_ON_JETPACK_6 = "10.3"

# Called as a stage starts (seconds None) and as it ends.
Progress: TypeAlias = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is to be made of a subject."""

    formats: tuple[str, ...]
    options: BuildOptions = field(default_factory=BuildOptions)
    out: Path = Path()
    opset: int | None = None
    images: Path | None = None
    calib: Path | None = None
    trt_version: str = NEWEST_ON_JETPACK_6  # what a graph for TensorRT is linted against, and lowered for
    verify: bool = True
    latency: bool = True
    # Enough for a p90; `edgevit latency` measures longer.
    plan: MeasurePlan = field(default_factory=lambda: MeasurePlan(min_runs=64, turn_s=0.15))

    def __post_init__(self) -> None:
        if not self.formats:
            raise UsageError("name at least one format: --fmt onnx,ort,openvino")
        if len(set(self.formats)) != len(self.formats):
            raise UsageError(f"a format stands twice in {','.join(self.formats)}")
        if self.options.compute_capabilities and "trt-rtx" not in self.formats:
            raise UsageError("--sm names the GPUs that --fmt trt-rtx compiles for; leave it out")
        if self.options.precision == "int8":
            raise PrecisionError("edgevit does not quantise to int8 yet; ask for --precision fp32 or fp16")
        if self.calib is not None and self.options.precision == "fp32":
            raise UsageError("--calib holds the photos that a lower precision is chosen by; fp32 needs none")


def run(subject: Subject, recipe: Recipe, progress: Progress | None = None) -> RunReport:
    """Makes the bundles of `recipe`, proves them and publishes them together: all of them, or none.

    Raises the error of the stage that failed, whose `exit_status` says which; nothing is left behind then.
    """
    runtimes = [get_runtime(fmt) for fmt in recipe.formats]
    for runtime in runtimes:  # what is missing is said before the long work, not after it
        if not runtime.builds_on_device:
            runtime.load()
        runtime.require_precision(recipe.options.precision)
    clock = StageClock(progress)
    with bundles.staging(recipe.out) as folder, ExitStack() as engines:
        captured = _capture(subject, recipe, clock)
        with clock.stage("PyTorch's answers"):
            references = ask_pytorch(subject, [spec.name for spec in captured.outputs], images=recipe.images)
        judged = _judge_capture(captured, references, recipe, clock)
        graph = _optimise(captured, references, recipe, clock)
        made = [_make(subject, recipe, graph, runtime, references, folder, clock) for runtime in runtimes]
        if recipe.verify:
            sum((item.parity for item in made), judged).require()
        for item in made:
            if item.built.engine is not None:
                engines.enter_context(item.built.engine)
        latencies = _measure(subject, recipe, captured, references, made, clock)
        return _publish(subject, recipe, captured, judged, made, latencies, references, clock)


class StageClock:
    """Times the stages and tells the progress display of them."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.times: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._progress:
            self._progress(name, None)
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, elapsed_s: float) -> None:
        self.times.append(StageTime(name, elapsed_s))
        if self._progress:
            self._progress(name, elapsed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A bundle in the making: everything but its latency and its manifest."""

    runtime: Runtime
    folder: Path
    graph: OnnxGraph
    typing: PrecisionPlan | None  # what stayed in fp32, where another precision was asked for
    built: Built
    parity: ParityReport
    steps: DeviceSteps | None  # how the device builds the engine, where only it can


def _capture(subject: Subject, recipe: Recipe, clock: StageClock) -> OnnxGraph:
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
        if not spec.shape or (dynamic and spec.shape[0] != "batch"):
            raise ExportError(f"the output {spec} does not follow the batch; export with a static --batch")
    return captured.graph


def _judge_capture(
    captured: OnnxGraph, references: Sequence[Reference], recipe: Recipe, clock: StageClock
) -> ParityReport:
    if not recipe.verify:
        return ParityReport(())
    with clock.stage("parity of the captured graph"):
        return compare(
            "ONNX",
            _evaluator(captured, recipe),
            references,
            precision="fp32",
            batches=judged_batches(recipe.options)[:1],
        )


def _optimise(captured: OnnxGraph, references: Sequence[Reference], recipe: Recipe, clock: StageClock) -> OnnxGraph:
    """The graph after our passes, and after onnxsim where that helps."""
    with clock.stage("graph passes"):
        graph = passes.optimise(captured)
    first = references[0]
    rows = [0] * judged_batches(recipe.options)[0]
    feeds: dict[str, Array] = {name: array[rows] for name, array in first.inputs.items()}
    with clock.stage("onnxsim"):
        return simplify(graph, lambda candidate: _evaluator(candidate, recipe)(feeds))


def _make(
    subject: Subject,
    recipe: Recipe,
    graph: OnnxGraph,
    runtime: Runtime,
    references: Sequence[Reference],
    folder: Path,
    clock: StageClock,
) -> _Made:
    options, fmt = _own_options(recipe, runtime), runtime.fmt
    place = folder / bundles.bundle_name(subject.name, options.precision, fmt)
    with clock.stage(f"{fmt}: lower, check"):
        lowered = check(passes.lower(graph, fmt, precision=options.precision, opset=_opset(recipe, fmt)))
        steps = _steps(lowered, recipe, recipe.out / place.name) if runtime.builds_on_device else None
    typed, typing = _type(lowered, subject, references, recipe, fmt, clock)
    with clock.stage(f"{fmt}: build"), _disk(place):
        place.mkdir()
        typed.save(place / bundles.MODEL)
        built = build_engine(runtime, place / bundles.MODEL, place, options)
    with clock.stage(f"{fmt}: load"):
        built = open_built(built, options)
    parity = _judge(lowered, typed, built, references, recipe, clock)
    return _Made(runtime=runtime, folder=place, graph=typed, typing=typing, built=built, parity=parity, steps=steps)


def _type(
    graph: OnnxGraph, subject: Subject, references: Sequence[Reference], recipe: Recipe, fmt: str, clock: StageClock
) -> tuple[OnnxGraph, PrecisionPlan | None]:
    """The graph in the precision asked for, by what its tensors reach on the photos."""
    if recipe.options.precision != "fp16":
        return graph, None
    inputs = calibration_photos(subject, recipe.calib) if recipe.calib else references[0].inputs
    batch, count = judged_batches(recipe.options)[0], len(next(iter(inputs.values())))
    rows = [[index % count for index in range(start, start + batch)] for start in range(0, count, batch)]
    feeds = [{name: array[chosen] for name, array in inputs.items()} for chosen in rows]
    with clock.stage(f"{fmt}: type fp16"):
        typed, typing = to_fp16(graph, feeds, load=lambda candidate: _evaluator(candidate, recipe))
        return check(typed), typing


def _own_options(recipe: Recipe, runtime: Runtime) -> BuildOptions:
    """The options without what is meant for another runtime of the recipe."""
    if runtime.fmt == "trt-rtx":
        return recipe.options
    return replace(recipe.options, compute_capabilities=None)


def _opset(recipe: Recipe, fmt: str) -> int | None:
    """The opset asked for; that which an old TensorRT reads, where the bundle is for one."""
    if recipe.opset is None and fmt == "trt" and parse_version(recipe.trt_version) < (10, 0):
        return passes.OLDEST_OPSET
    return recipe.opset


def _steps(graph: OnnxGraph, recipe: Recipe, bundle: Path) -> DeviceSteps:
    """How the engine is built on the device, once the graph is seen to be one that TensorRT's parser takes.

    Raises ExportError with the first thing that it does not.
    """
    for finding in lint(graph, parse_target(f"trt:{recipe.trt_version}")):
        if finding.level == "error":
            where = f"TensorRT {recipe.trt_version} cannot build {finding.node}"
            raise ExportError(f"{where}: {finding.why}; {finding.remedy}")
    return device_steps(bundle, recipe.options, recipe.trt_version, inputs=graph.inputs)


def _judge(
    lowered: OnnxGraph,
    typed: OnnxGraph,
    built: Built,
    references: Sequence[Reference],
    recipe: Recipe,
    clock: StageClock,
) -> ParityReport:
    """The finished graph, and the engine where it runs here."""
    if not recipe.verify:
        return ParityReport(())
    fmt, batches = built.runtime.fmt, judged_batches(recipe.options)
    with clock.stage(f"{fmt}: parity"):
        report = compare(
            f"{fmt}: optimised ONNX", _evaluator(lowered, recipe), references, precision="fp32", batches=batches[:1]
        )
        if typed is not lowered:
            report += compare(
                f"{fmt}: typed ONNX",
                _evaluator(emulate_fp16(typed), recipe),  # ONNX Runtime would compute it in fp32 and hide overflows
                references,
                precision=recipe.options.precision,
                batches=batches[:1],
            )
        if built.engine is not None:
            report += compare(
                f"{fmt}: engine", built.engine.run, references, precision=recipe.options.precision, batches=batches
            )
    return report


def _evaluator(graph: OnnxGraph, recipe: Recipe) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """Runs a graph as its file says, with no optimisation of the runtime's own."""
    engine = OnnxRuntimeEngine(
        OnnxFile().load(), graph.to_bytes(), BuildOptions(threads=recipe.options.threads), optimised=False
    )
    return engine.run


def _measure(
    subject: Subject,
    recipe: Recipe,
    captured: OnnxGraph,
    references: Sequence[Reference],
    made: Sequence[_Made],
    clock: StageClock,
) -> dict[str, LatencyReport]:
    """PyTorch and every engine that runs here side by side, in one interleaved run."""
    running = [item.built for item in made if item.built.engine is not None]
    if not recipe.latency or not running:
        return {}
    options = recipe.options
    batch = options.dynamic_batch.optimum if options.dynamic_batch else options.batch
    rows = [index % references[0].rows for index in range(batch)]
    feeds = {name: array[rows] for name, array in references[0].inputs.items()}
    torch_engine = TorchEngine(subject.module, captured.inputs, captured.outputs, threads=options.threads)
    contestants = [contestant("torch", torch_engine, feeds, threads=options.threads)]
    for built in running:
        assert built.engine is not None
        contestants.append(
            contestant(built.runtime.fmt, built.engine, feeds, threads=options.threads, loading=built.loading)
        )
    with clock.stage("latency"):
        return {report.name: report for report in measure(contestants, recipe.plan)}


def _publish(
    subject: Subject,
    recipe: Recipe,
    captured: OnnxGraph,
    judged: ParityReport,
    made: Sequence[_Made],
    latencies: Mapping[str, LatencyReport],
    references: Sequence[Reference],
    clock: StageClock,
) -> RunReport:
    environment = Environment.capture()
    for item in made:
        with _disk(item.folder):
            bundles.write_references(item.folder / bundles.REFERENCE, references)
            if subject.classes:
                (item.folder / bundles.CLASSES).write_text("\n".join(subject.classes) + "\n", "utf-8")
            if latencies:
                _write_latency(item, latencies)
            manifest = _manifest(subject, recipe, item, judged, latencies, environment, clock.times)
            bundles.write_manifest(item.folder, manifest)
    reports = [_bundle_report(item, recipe) for item in made]
    for item in made:
        bundles.publish(item.folder, recipe.out / item.folder.name)
    return RunReport(
        model=subject.name,
        weights=str(subject.origin["weights"]),
        stages=tuple(clock.times),
        captured_nodes=captured.node_count,
        bundles=tuple(reports),
        parity=sum((item.parity for item in made), judged),
        latencies=tuple(latencies.values()),
        takes_photos=subject.preprocessing is not None,
    )


def _bundle_report(item: _Made, recipe: Recipe) -> BundleReport:
    artifact = item.built.artifact
    notes = [f"{record.name} {record.note}" for record in item.graph.history if record.note]
    missing = item.built.missing
    if item.steps is not None and missing is not None:
        notes.append(f"or, in the bundle's folder, with TensorRT's own tool: {item.steps.trtexec}")
        missing = f"{item.steps.sentence} (here: {missing})"
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
    )


def _device_notes(steps: DeviceSteps | None) -> tuple[str, ...]:
    return () if steps is None else (steps.build, steps.trtexec)


def _manifest(
    subject: Subject,
    recipe: Recipe,
    item: _Made,
    judged: ParityReport,
    latencies: Mapping[str, LatencyReport],
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
        **item.built.entries(item.folder, _own_options(recipe, item.runtime), notes=_device_notes(item.steps)),
        **spec_entries({"inputs": item.graph.inputs, "outputs": item.graph.outputs}),
        "typing": item.typing.to_json() if item.typing else None,
        "parity": (judged + item.parity).to_json() if recipe.verify else None,
        "latency": [latency_figures(report) for report in latencies.values()] or None,
        "environment": environment.to_json(),
    }


def _write_latency(item: _Made, latencies: Mapping[str, LatencyReport]) -> None:
    """Every sample of the run, of all contestants, beside the manifest's figures."""
    content = [report.to_json() for report in latencies.values()]
    (item.folder / bundles.LATENCY).write_text(json.dumps(content, allow_nan=False) + "\n", "utf-8")


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A disk that is full, or a file that may not be written, in one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EdgevitError):
            raise
        raise ExportError(
            f"cannot write {error.filename or place}: {error.strerror or error}; free some space, "
            "or name another folder with --out"
        ) from error
