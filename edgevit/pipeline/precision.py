"""The graph in the precision asked for: what is measured on which photos, and who judges the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgevit import metrics as accuracy
from edgevit.errors import MissingError, UsageError
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import cached_reach
from edgevit.export.quantization.fp16 import PrecisionPlan, emulate_fp16, to_fp16
from edgevit.export.quantization.int8 import layers_of
from edgevit.export.quantization.sensitivity import Judge, QuantizationPlan, quantize_within
from edgevit.files import cache_folder
from edgevit.formats import get_format
from edgevit.pipeline.config import ExportConfig, StageTimer
from edgevit.pipeline.references import EvalDataset, ReferenceData
from edgevit.precisions import get_policy
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxFile, OnnxRuntimeEngine
from edgevit.runtimes.parity import compare, references_for
from edgevit.types import Array, Feeds, Run

Typing: TypeAlias = PrecisionPlan | QuantizationPlan

FP16_PHOTOS = 64  # of the calibration inputs: fp16 asks for orders of magnitude alone
RANKED_ON = 4  # rows that the sensitivity of layers is measured on
JUDGED_ON = 512  # labelled images that a graph is judged on while layers are chosen; the engine is judged on all
MARGIN = 0.8  # of what is allowed: an engine rounds a little otherwise than the graph that was judged
_SCALES_IN_FP16 = 19  # the first opset whose QuantizeLinear takes them


def to_precision(
    graph: OnnxGraph,
    evidence: ReferenceData,
    recipe: ExportConfig,
    fmt: str,
    clock: StageTimer,
) -> tuple[OnnxGraph, Typing | None]:
    """The graph in the precision of the recipe, and what of it is not in that precision.

    Raises UsageError for photos that nothing can be measured on, PrecisionError where int8 does not keep the answers.
    """
    precision = recipe.options.precision
    if precision == "fp16":
        return _to_fp16(graph, _batches(evidence.calibration, recipe, FP16_PHOTOS), recipe, fmt, clock)
    if precision == "int8":
        return _to_int8(graph, evidence, recipe, fmt, clock)
    return graph, None


def evaluator(graph: OnnxGraph, recipe: ExportConfig) -> Run:
    """Runs a graph as its file says, with no optimisation of the runtime's own."""
    engine = OnnxRuntimeEngine(
        OnnxFile().load(), graph.to_bytes(), BuildOptions(threads=recipe.options.threads), optimised=False
    )
    return engine.run


def typed_evaluator(graph: OnnxGraph, recipe: ExportConfig) -> Run:
    """Runs a typed graph with fp16 rounded as fp16: ONNX Runtime would compute it in fp32 and hide overflows."""
    return evaluator(emulate_fp16(graph), recipe)


def _to_fp16(
    graph: OnnxGraph, feeds: Sequence[Feeds], recipe: ExportConfig, fmt: str, clock: StageTimer
) -> tuple[OnnxGraph, PrecisionPlan]:
    with clock.stage(f"{fmt}: type fp16"):
        typed, typing = to_fp16(graph, feeds, load=_loader(recipe))
        return check(typed), typing


def _to_int8(
    graph: OnnxGraph,
    evidence: ReferenceData,
    recipe: ExportConfig,
    fmt: str,
    clock: StageTimer,
) -> tuple[OnnxGraph, QuantizationPlan]:
    load, scheme = _loader(recipe), get_format(fmt).require_int8()
    feeds = _batches(evidence.calibration, recipe)
    names = {name for layer in layers_of(graph) for name in (layer.activation, layer.output)}
    with clock.stage(f"{fmt}: calibrate"):
        reach = cached_reach(
            graph,
            feeds,
            load=load,
            names=names,
            cache=_cache(),
            on_feed=lambda done, total: clock.at(f"{fmt}: calibrate, {done} of {total} inputs"),
        )
    with clock.stage(f"{fmt}: quantise"):
        typed, plan = quantize_within(
            graph,
            reach,
            scheme=scheme,
            judge=_judge(graph, feeds, evidence, recipe),
            feeds=_batches(evidence.references[0].inputs, recipe, RANKED_ON),
            load=load,
            on_layer=lambda done, total: clock.at(f"{fmt}: sensitivity, {done} of {total} layers"),
        )
        check(typed)
    if scheme.float_dtype == "fp32":
        return typed, plan
    if graph.opset < _SCALES_IN_FP16:
        return typed, replace(plan, rest="fp32")
    typed, _ = _to_fp16(typed, feeds[:FP16_PHOTOS], recipe, fmt, clock)
    return typed, plan


def _judge(graph: OnnxGraph, feeds: Sequence[Feeds], evidence: ReferenceData, recipe: ExportConfig) -> Judge:
    """Holds a graph against the parity policy, and its classes against fp32's where a bound is given."""
    bound, batches = recipe.allowed_drop, recipe.options.batch_sizes[:1]
    exam = evidence.exam.spread(JUDGED_ON) if evidence.exam is not None else None
    asked = len(exam.images.paths) if exam is not None else len(feeds) * batches[0]
    least = 1 - MARGIN * (1 - get_policy("int8").tolerance.cosine)
    photos = references_for(evidence.references, "int8")
    drop = None if bound is None else _drop(evaluator(graph, recipe), feeds, exam)

    def judge(candidate: OnnxGraph) -> str:
        run = evaluator(candidate, recipe)
        if recipe.verify:
            found = compare("int8", run, photos, precision="int8", batches=batches)
            cosine = min(min(result.cosine) for result in found.results)
            if not cosine >= least:  # a NaN too
                return f"cosine {cosine:.4f} on photos, at least {least:g}"
        if drop is not None and bound is not None and (lost := drop(run)) > tolerated(bound, asked):
            what = (
                f"top-1 loses {lost:.2%}" if exam is not None else f"{lost:.2%} of the calibration inputs change class"
            )
            return f"{what}, and {bound:.2%} are allowed"
        return ""

    return judge


def tolerated(bound: float, images: int) -> float:
    """The share of `images` that may be lost while layers are chosen: less than `bound`, but of few images one, where
    `bound` lets one go."""
    one = (1 + 1e-9) / images  # shares that were percentages in between are off by their rounding
    return max(MARGIN * bound, min(bound, one))


def _drop(reference: Run, feeds: Sequence[Feeds], exam: EvalDataset | None) -> Callable[[Run], float]:
    """What a graph loses of top-1 against `reference`, as a share; without an exam, how often its class is another."""
    if exam is None:
        return _changed_classes(reference, feeds)
    (wanted,) = exam.evaluate({"fp32": reference})
    return lambda run: accuracy.drop_points(wanted, exam.evaluate({"int8": run})[0]).points / 100


def _changed_classes(reference: Run, feeds: Sequence[Feeds]) -> Callable[[Run], float]:
    """The share of the calibration inputs that a graph puts into another class."""

    def classes(run: Run) -> list[int]:
        answers = [next(iter(run(feed).values())) for feed in feeds]
        if answers[0].ndim != 2:
            raise UsageError("--max-drop counts classes, and the model's first output has none; leave it out")
        return [int(index) for answer in answers for index in answer.argmax(1)]

    wanted = classes(reference)
    return lambda run: float(np.mean([want != got for want, got in zip(wanted, classes(run), strict=True)]))


def _batches(inputs: Mapping[str, Array], recipe: ExportConfig, limit: int | None = None) -> list[dict[str, Array]]:
    """The rows of `inputs` in the batch that the graph is judged at; the last is filled up by starting over."""
    batch, count = recipe.options.batch_sizes[0], len(next(iter(inputs.values())))
    used = min(count, limit or count)
    rows = [[index % count for index in range(start, start + batch)] for start in range(0, used, batch)]
    return [{name: array[chosen] for name, array in inputs.items()} for chosen in rows]


def _loader(recipe: ExportConfig) -> Callable[[OnnxGraph], Run]:
    return lambda graph: evaluator(graph, recipe)


def _cache() -> Path | None:
    try:
        return cache_folder() / "calibration"
    except MissingError:
        return None
