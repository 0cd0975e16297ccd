"""Tune a model, and measure the recommended engine and the peers in one interleaved run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import edgevit
from edgevit.bundles.engine import load_engine
from edgevit.datasets import find_dataset
from edgevit.latency.candidate import candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.report import LatencyReport
from edgevit.metrics import INPUT, OUTPUT, Evaluation, evaluate, with_common_names
from edgevit.models.loading import from_name
from edgevit.pipeline.calibration import calibration_inputs
from edgevit.pipeline.tuning.report import TuningReport
from edgevit.runtimes.base import Engine
from edgevit.runtimes.registry import get_runtime
from edgevit.types import PRECISIONS, Feeds, Run
from tests.tools.bench.candidates import usable_candidates
from tests.tools.bench.engine_builder import EngineBuilder
from tests.tools.bench.kept import Folders
from tests.tools.bench.labeled import ImageFolders
from tests.tools.bench.measuring import interleaved_plan, speedup
from tests.tools.bench.rows import this_processor, this_revision
from tests.tools.bench.tuned_rows import MAX_LOSS_POINTS, Entry, TunedRow, counts

_TUNED, _PYTORCH = "tuned", "pytorch"  # names beside those of the candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedRequest:
    """A measurement to make."""

    model: str
    weights: Path | None
    images: ImageFolders
    threads: int
    limit_s: float  # of the search
    seconds: float  # of the interleaved run


def tune(request: TunedRequest, out: Path) -> TuningReport:
    """Search as `edgevit tune --fresh` does."""
    return edgevit.tune(
        request.model,
        weights=request.weights,
        time_s=request.limit_s,
        threads=(request.threads,),
        calib=request.images.calib,
        eval=request.images.eval,
        max_drop=MAX_LOSS_POINTS / 100,
        out=out,
        fresh=True,
    )


def builder_for(request: TunedRequest, root: Path) -> EngineBuilder:
    """Return the builder of the peers, which are calibrated on the images that `edgevit tune` gets."""
    model = from_name(request.model, weights=request.weights)
    rows = calibration_inputs(model, request.images.calib)[model.input_names[0]]
    folders = Folders.below(root, request.model, request.weights, calibration=rows)
    return EngineBuilder(request.model, folders, weights=request.weights, calibration_rows=rows)


def measure_tuned(request: TunedRequest, report: TuningReport, builder: EngineBuilder) -> TunedRow:
    """Measure the accuracy of the recommended engine and of all peers, then their times."""
    with ExitStack() as stack:
        with get_runtime(report.bundle.fmt).session():
            tuned = stack.enter_context(load_engine(report.bundle))  # with the settings of its manifest
        engines: dict[str, Engine] = {_TUNED: tuned}
        candidates = [candidate_from_engine(_TUNED, tuned, builder.feeds(), threads=request.threads)]
        for peer in (each for each in usable_candidates(PRECISIONS) if each.kind != "ours"):
            subject = builder.open(peer, request.threads, stack)
            if subject is not None:
                engines[peer.name] = subject.engine
                candidates.append(subject.candidate)
        evaluations = _evaluate(request, builder, engines)
        reports = measure(candidates, interleaved_plan(request.seconds, len(candidates)))
    entries = _entries(reports, evaluations)
    return TunedRow(
        model=request.model,
        threads=request.threads,
        processor=this_processor(),
        engine=report.winner.name,
        limit_s=request.limit_s,
        tuned=entries.pop(_TUNED),
        peers=entries,
        missing=dict(builder.failures),
        torch_top1=evaluations[_PYTORCH].top1,
        images=evaluations[_PYTORCH].images,
        calibration_images=len(builder.calibration),
        weights=builder.model.origin.weights,
        rounds=len(reports[0].round_ms),
        busy_others=round(reports[0].others_fraction or 0.0, 2),
        packages=dict(reports[0].environment.packages),
        day=datetime.now(timezone.utc).date().isoformat(),
        revision=this_revision(),
    )


def _evaluate(request: TunedRequest, builder: EngineBuilder, engines: Mapping[str, Engine]) -> dict[str, Evaluation]:
    """Return what PyTorch and each engine answer to the labeled images."""
    model, output = builder.model, engines[_TUNED].outputs[0]
    assert model.preprocessing is not None  # of registered models
    classes = output.shape[1]
    assert isinstance(classes, int)  # of a classifier
    images = find_dataset(request.images.eval, classes=model.classes, class_count=classes)
    runs: dict[str, Run] = {
        name: with_common_names(engine.run, model.input_names[0], output.name) for name, engine in engines.items()
    }
    found = evaluate({_PYTORCH: _pytorch_run(builder), **runs}, images, model.preprocessing)
    return {each.name: each for each in found}


def _pytorch_run(builder: EngineBuilder) -> Run:
    def run(feeds: Feeds) -> Feeds:
        with torch.inference_mode():
            return {OUTPUT: builder.model.module(torch.from_numpy(feeds[INPUT])).numpy()}

    return run


def _entries(reports: Sequence[LatencyReport], evaluations: Mapping[str, Evaluation]) -> dict[str, Entry]:
    """Return what was measured of each engine, by name."""
    own = next(each for each in reports if each.name == _TUNED)
    torch_correct = sum(evaluations[_PYTORCH].correct)
    return {
        report.name: Entry(
            p50_ms=round(report.p50_ms, 4),
            top1=evaluations[report.name].top1,
            counts=counts(sum(evaluations[report.name].correct), torch_correct, evaluations[report.name].images),
            slowdown=None if report is own else speedup(own, report),
        )
        for report in reports
    }
