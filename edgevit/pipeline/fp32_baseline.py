"""A lower precision against fp32: the same runtime, the same run, the same labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgevit.bundles import bundle as bundles
from edgevit.export import passes
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.latency.compare import side_by_side
from edgevit.latency.measure import LatencyReport
from edgevit.metrics import Evaluation
from edgevit.pipeline.comparison import ENGINE, PrecisionComparison
from edgevit.pipeline.config import ExportConfig, StageTimer
from edgevit.pipeline.export_run import BuiltBundle, Fp32Baseline, writing
from edgevit.pipeline.precision import evaluator, typed_evaluator
from edgevit.pipeline.references import EvalDataset, ReferenceData
from edgevit.runtimes.base import Engine
from edgevit.runtimes.build import build_engine, open_built


def baselines_of(
    graph: OnnxGraph, recipe: ExportConfig, made: Sequence[BuiltBundle], folder: Path, clock: StageTimer
) -> dict[str, Fp32Baseline]:
    """fp32 for each format, where less was asked for."""
    if recipe.options.precision == "fp32":
        return {}
    return {item.runtime.fmt: _baseline(graph, recipe, item, folder / item.runtime.fmt, clock) for item in made}


def _baseline(
    graph: OnnxGraph, recipe: ExportConfig, item: BuiltBundle, folder: Path, clock: StageTimer
) -> Fp32Baseline:
    runtime, fmt = item.runtime, item.runtime.fmt
    lowered = check(passes.specialize(graph, fmt, opset=recipe.opset_for(fmt)))
    if item.built.engine is None:
        return Fp32Baseline(graph=lowered, built=None)
    options = replace(recipe.options_for(runtime), precision="fp32")
    with clock.stage(f"{fmt}: fp32 to compare"), writing(folder):
        folder.mkdir(parents=True)
        lowered.save(folder / bundles.MODEL)
        built = open_built(build_engine(runtime, folder / bundles.MODEL, folder, options), options)
    return Fp32Baseline(graph=lowered, built=built)


def fp32_name(fmt: str) -> str:
    return f"{fmt} fp32"


def verdicts_of(
    evidence: ReferenceData,
    recipe: ExportConfig,
    made: Sequence[BuiltBundle],
    baselines: Mapping[str, Fp32Baseline],
    latencies: Mapping[str, LatencyReport],
    clock: StageTimer,
) -> dict[str, PrecisionComparison]:
    """Each lower precision against fp32. Raises ParityError where more accuracy is lost than is allowed."""
    found = {}
    for item in made:
        baseline = baselines.get(item.runtime.fmt)
        if baseline is None:
            continue
        verdict = _verdict(evidence, recipe, item, baseline, latencies, clock)
        if recipe.verify:
            verdict.require(recipe.allowed_drop)
        found[item.runtime.fmt] = verdict
    return found


def _verdict(
    evidence: ReferenceData,
    recipe: ExportConfig,
    item: BuiltBundle,
    baseline: Fp32Baseline,
    latencies: Mapping[str, LatencyReport],
    clock: StageTimer,
) -> PrecisionComparison:
    fmt, engine = item.runtime.fmt, _engine(item)
    fp32 = baseline.built.artifact if baseline.built is not None else None
    wanted, answers = _examine(evidence.exam, recipe, item, baseline, clock)
    pair = [latencies[name] for name in (fp32_name(fmt), fmt) if name in latencies]
    last = item.parity.results[-1].stage if item.parity.results else ""
    return PrecisionComparison(
        fmt=fmt,
        precision=recipe.options.precision,
        judged=ENGINE if engine is not None else "the typed graph",
        parity=tuple(result for result in item.parity.results if result.stage == last),
        wanted=wanted,
        found=answers,
        time=side_by_side(pair)[1].ratio if len(pair) == 2 and engine is not None else None,
        size_bytes=item.built.artifact.size_bytes if item.built.artifact else None,
        fp32_size_bytes=fp32.size_bytes if fp32 is not None else None,
        allowed_drop=recipe.allowed_drop,
    )


def _engine(item: BuiltBundle) -> Engine | None:
    """The engine, where one runs here: a file that is read node by node for us has no arithmetic and no speed of its
    own."""
    return item.built.engine if item.runtime.format.deployable else None


def _examine(
    exam: EvalDataset | None, recipe: ExportConfig, item: BuiltBundle, baseline: Fp32Baseline, clock: StageTimer
) -> tuple[Evaluation | None, Evaluation | None]:
    """fp32's answers to the labelled images, and those of the lower precision: of engines where they run here."""
    if exam is None:
        return None, None
    fmt, engine = item.runtime.fmt, _engine(item)
    fp32 = baseline.built.engine if baseline.built is not None else None
    runs = {fp32_name(fmt): fp32.run if fp32 is not None else evaluator(baseline.graph, recipe)}
    runs[fmt] = engine.run if engine is not None else typed_evaluator(item.graph, recipe)
    with clock.stage(f"{fmt}: accuracy"):
        wanted, answers = exam.evaluate(
            runs, progress=lambda done, total: clock.at(f"{fmt}: accuracy, {done} of {total} images")
        )
    return wanted, answers
